-- The store: `store` HASH key -> version and expiry (two doubles, big-endian; 0 is never), then the value;
-- `store:keys` ZSET of the keys by name; `store:expiries` ZSET key -> when it expires, if ever.
--
-- Who waits for a key to change listens to the channel `store:<key>`. Its name is sent there only if someone does: to ask
-- for all keys at once costs as much as to send to nobody (0.6 µs a key), and that would go to the replicas too.
--
-- Invariant: all three hold the same keys, what has expired is as if it were not there, and a script that writes calls
-- `done_writing` once, after its last write.

local store = base .. ':store'
local touched = {} -- channels of what was written

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
  local is_new = call('HSET', store, key, kept) == 1
  if is_new then call('ZADD', store .. ':keys', 0, key) end
  if expires ~= 0 then
    call('ZADD', store .. ':expiries', expires, key)
  elseif not is_new then
    call('ZREM', store .. ':expiries', key)
  end
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
  touched[#touched + 1] = store .. ':' .. key
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

-- Tell those who wait for what was written, and clear what has expired: a little more than came.
local function done_writing()
  if #touched == 0 then return end
  local passed = call('ZRANGEBYSCORE', store .. ':expiries', '-inf', now, 'LIMIT', 0, 2 * #touched)
  for _, key in ipairs(passed) do drop(key) end
  local listeners = ask('PUBSUB', 'SHARDNUMSUB', touched)
  for i = 1, #listeners, 2 do
    if listeners[i + 1] > 0 then call('SPUBLISH', listeners[i], string.sub(listeners[i], #store + 2)) end
  end
end
