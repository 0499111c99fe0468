#!lua flags=no-writes,allow-oom
-- Changed: entries of the store that are no longer as they are known.
--
-- needs     common entries
-- keys      store
-- request   time, [key, version that is known]…
-- answer    how many of the keys were looked at; then key, version, value of each whose version is another: 0 and false
--           where there is nothing
--
-- Invariant: it changes nothing.

local found, size = {0}, 0
for i = 2, #request, 2 do
  local kept, version = entry(request[i])
  if version ~= request[i + 1] then
    found[#found + 1] = request[i]
    found[#found + 1] = version
    found[#found + 1] = kept and string.sub(kept, 17)
    size = size + (kept and #kept or 0)
  end
  found[1] = i / 2
  if size >= BYTES then return found end
end
return found
