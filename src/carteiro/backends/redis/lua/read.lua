#!lua flags=no-writes,allow-oom
-- Read: entries of the store, by their keys or by how these begin.
--
-- needs     common entries
-- request   time, keys or false, the beginning of keys
-- answer    key, version, value of each that is there; in the order of their keys if they are named by a beginning

local keys = request[2]
if not keys then
  keys = call('ZRANGEBYLEX', store .. ':keys', '[' .. request[3], '+')
end
local found = {}
for _, key in ipairs(keys) do
  if not request[2] and string.sub(key, 1, #request[3]) ~= request[3] then break end
  local kept, version = entry(key)
  if kept then
    found[#found + 1] = key
    found[#found + 1] = version
    found[#found + 1] = string.sub(kept, 17)
  end
end
return found
