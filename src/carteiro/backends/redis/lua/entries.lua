-- The store: `store` HASH key -> version and expiry (two doubles, big-endian; 0 is never), then the value;
-- `store:keys` ZSET of the keys by name; `store:expiries` ZSET key -> when it expires, if ever.
--
-- What a script writes it keeps to itself until `done_writing`, which makes all of it with a few calls: one call a key
-- and a structure cost three times as much.
--
-- Who waits for a key to change listens to the channel `store:<key>`. Its name is sent there only if someone does: to ask
-- for all keys at once costs as much as to send to nobody (0.6 µs a key), and that would go to the replicas too.
--
-- Invariant: all three hold the same keys, what has expired is as if it were not there, and a script that writes calls
-- `done_writing` once, after its last write.

local store = base .. ':store'
local seen = {} -- key -> what is kept under it, as the script sees it; false if nothing is
local found = {} -- key -> whether something was, of those written
local written = {} -- their keys, each once
local touched = {} -- channels of what was written

-- Read many at once, before each is asked for.
local function look_up(keys)
  for i, kept in ipairs(ask('HMGET', store, keys)) do seen[keys[i]] = kept end
end

local function kept_at(key)
  local kept = seen[key]
  if kept == nil then
    kept = call('HGET', store, key)
    seen[key] = kept
  end
  return kept
end

local function entry(key)
  local kept = kept_at(key)
  if not kept then return false, 0 end
  local version, expires = struct.unpack('>dd', kept)
  if expires ~= 0 and expires <= now then return false, 0 end
  return kept, version
end

-- Have `kept`, or nothing if it is false, under the key.
local function put(key, kept)
  if found[key] == nil then
    found[key] = kept_at(key) and true or false
    written[#written + 1] = key
  end
  seen[key] = kept
end

local function drop_all(keys)
  count('HDEL', store, keys)
  count('ZREM', store .. ':keys', keys)
  count('ZREM', store .. ':expiries', keys)
end

-- Apply {key, value or false, lifetime or false, version expected or false}; false where the version is another.
local function write(change)
  local key, value, lifetime, expected = unpack(change)
  local _, version = entry(key)
  if expected and expected ~= version then return false end
  put(key, value and struct.pack('>dd', version + 1, lifetime and now + lifetime or 0) .. value)
  touched[#touched + 1] = store .. ':' .. key
  return true
end

-- Apply all of them in order or, where one does not find the version it expects, none.
local function write_all(changes)
  local before = {}
  for i, change in ipairs(changes) do
    before[i] = kept_at(change[1])
    if not write(change) then
      for j = i - 1, 1, -1 do put(changes[j][1], before[j]) end
      return false
    end
  end
  return true
end

-- Make what was written, tell those who wait for it, and clear what has expired: a little more than came.
local function done_writing()
  if #touched == 0 then return end
  local kept, named, ending, endless, gone = {}, {}, {}, {}, {}
  for _, key in ipairs(written) do
    local new = seen[key]
    if new then
      kept[#kept + 1] = key
      kept[#kept + 1] = new
      if not found[key] then
        named[#named + 1] = '0'
        named[#named + 1] = key
      end
      local _, expires = struct.unpack('>dd', new)
      if expires ~= 0 then
        ending[#ending + 1] = as_text(expires)
        ending[#ending + 1] = key
      elseif found[key] then
        endless[#endless + 1] = key
      end
    elseif found[key] then
      gone[#gone + 1] = key
    end
  end
  count('HSET', store, kept)
  count('ZADD', store .. ':keys', named)
  count('ZADD', store .. ':expiries', ending)
  count('ZREM', store .. ':expiries', endless)
  drop_all(gone)
  drop_all(call('ZRANGEBYSCORE', store .. ':expiries', '-inf', now, 'LIMIT', 0, 2 * #touched))
  local listeners = ask('PUBSUB', 'SHARDNUMSUB', touched)
  for i = 1, #listeners, 2 do
    if listeners[i + 1] > 0 then call('SPUBLISH', listeners[i], string.sub(listeners[i], #store + 2)) end
  end
end
