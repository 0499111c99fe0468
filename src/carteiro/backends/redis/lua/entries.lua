-- The store: `store` HASH key -> version and expiry (two doubles, big-endian; 0 is never), then the value;
-- `store:keys` ZSET of the keys by name; `store:expiries` ZSET key -> when it expires, if ever.
--
-- Invariant: all three hold the same keys, and what has expired is as if it were not there.

local store = base .. ':store'

local function entry(key)
  local kept = call('HGET', store, key)
  if not kept then return false, 0 end
  local version, expires = struct.unpack('>dd', kept)
  if expires ~= 0 and expires <= now then return false, 0 end
  return kept, version
end

local function drop(key)
  call('HDEL', store, key)
  call('ZREM', store .. ':keys', key)
  call('ZREM', store .. ':expiries', key)
end

local function keep(key, kept)
  local _, expires = struct.unpack('>dd', kept)
  call('HSET', store, key, kept)
  call('ZADD', store .. ':keys', 0, key)
  if expires ~= 0 then
    call('ZADD', store .. ':expiries', expires, key)
  else
    call('ZREM', store .. ':expiries', key)
  end
end

-- Clear what has expired, a little more than one change can add.
local function clear()
  for _, key in ipairs(call('ZRANGEBYSCORE', store .. ':expiries', '-inf', now, 'LIMIT', 0, 2)) do drop(key) end
end

-- Apply {key, value or false, lifetime or false, version expected or false}; false where the version is another.
local function write(change)
  local key, value, lifetime, expected = unpack(change)
  local _, version = entry(key)
  if expected and expected ~= version then return false end
  if value then
    keep(key, struct.pack('>dd', version + 1, lifetime and now + lifetime or 0) .. value)
  else
    drop(key)
  end
  clear()
  return true
end

-- Apply all of them in order or, where one does not find the version it expects, none.
local function write_all(changes)
  local before = {}
  for i, change in ipairs(changes) do
    before[i] = entry(change[1])
    if not write(change) then
      for j = i - 1, 1, -1 do
        if before[j] then keep(changes[j][1], before[j]) else drop(changes[j][1]) end
      end
      return false
    end
  end
  return true
end
