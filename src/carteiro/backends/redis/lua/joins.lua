-- Sets that are joined: `join:<key>` HASH of the members, of one that is not full; `joined` HASH key -> [member, actor]
-- that completed it, of one that is; `joins` ZSET key -> until when it is remembered, if not for ever.
--
-- Invariant: a set has members until it is full, and from then on is in `joined`; never both.

local joins, joined = base .. ':joins', base .. ':joined'

local function forget(key)
  call('UNLINK', base .. ':join:' .. key)
  call('HDEL', joined, key)
  call('ZREM', joins, key)
end

-- Make {key, member, actor, size, lifetime or false, writes}; returns whether its emits are to be published.
local function make(joining)
  local key, member, actor, size, lifetime, changes = unpack(joining)
  local members = base .. ':join:' .. key
  local until_ = call('ZSCORE', joins, key)
  if until_ and tonumber(until_) <= now then forget(key) end
  local completed = call('HGET', joined, key)
  if completed then return completed == cmsgpack.pack({member, actor}) end
  if call('HSETNX', members, member, '') == 0 then return false end
  if lifetime then
    call('ZADD', joins, now + lifetime, key)
  elseif until_ then
    call('ZREM', joins, key)
  end
  local there = call('HLEN', members)
  if there == 1 then
    -- Clear what has passed, a little more than came.
    for _, other in ipairs(call('ZRANGEBYSCORE', joins, '-inf', now, 'LIMIT', 0, 2)) do forget(other) end
  end
  if there < size then return false end
  call('UNLINK', members)
  call('HSET', joined, key, cmsgpack.pack({member, actor}))
  for _, change in ipairs(changes) do write(change) end
  return true
end
