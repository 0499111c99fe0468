#!lua flags=no-writes,allow-oom
-- Read: entries of the store, by their keys or by the bounds of these.
--
-- needs     common entries
-- keys      store, store:keys
-- request   time, keys, or false and the least and the greatest as ZRANGEBYLEX has them, and how many at most or false
-- answer    the last key that was looked at, or false if there are no more; then key, version, value of each that is
--           there, in the order of their keys if they are between bounds
--
-- Invariant: it changes nothing, and answers nothing that has expired.

local AT_A_TIME = 1000
local SOME = 50 -- of those named, looked up with one call: they are in memory together
local named, least, greatest, left = request[2], request[3], request[4], request[5] or AT_A_TIME
local found, size, looked = {false}, 0, 0

-- No more keys than may be answered, so that one of many costs as little as one of few; but what has expired does not
-- count, and so there may be a next time.
local function following(from)
  return call('ZRANGEBYLEX', store .. ':keys', from, greatest, 'LIMIT', 0, math.min(left, AT_A_TIME - looked))
end

local keys = named or following(least)
while #keys > 0 do
  for i, key in ipairs(keys) do
    if named and i % SOME == 1 then look_up({unpack(keys, i, math.min(i + SOME - 1, #keys))}) end
    local kept, version = entry(key)
    if kept then
      found[#found + 1] = key
      found[#found + 1] = version
      found[#found + 1] = string.sub(kept, 17)
      size = size + #kept
      left = left - 1
    end
    looked = looked + 1
    if size >= BYTES or looked == AT_A_TIME then
      found[1] = key
      return found
    end
  end
  keys = named and {} or following('(' .. keys[#keys])
end
return found
