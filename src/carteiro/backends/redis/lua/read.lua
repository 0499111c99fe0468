#!lua flags=no-writes,allow-oom
-- Read: entries of the store, by their keys or by how these begin.
--
-- needs     common entries
-- keys      store, store:keys
-- request   time, keys, or false and the beginning of keys and the key that they follow or false
-- answer    the last key that was looked at, or false if there are no more; then key, version, value of each that is
--           there, in the order of their keys if they are named by a beginning
--
-- Invariant: it changes nothing, and answers nothing that has expired.

local AT_A_TIME = 1000
local keys, beginning, after = request[2], request[3], request[4]
if not keys then
  local from = after and '(' .. after or '[' .. beginning
  keys = call('ZRANGEBYLEX', store .. ':keys', from, '+', 'LIMIT', 0, AT_A_TIME)
end
local found, size = {false}, 0
for i, key in ipairs(keys) do
  if not request[2] and string.sub(key, 1, #beginning) ~= beginning then return found end
  local kept, version = entry(key)
  if kept then
    found[#found + 1] = key
    found[#found + 1] = version
    found[#found + 1] = string.sub(kept, 17)
    size = size + #kept
  end
  if size >= BYTES or i == AT_A_TIME then
    found[1] = key
    return found
  end
end
return found
