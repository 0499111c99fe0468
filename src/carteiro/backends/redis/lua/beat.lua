#!lua flags=allow-oom
-- Beat: a process says that it lives, and clears away what has passed.
--
-- needs     common routing entries
-- request   time, a new version, how long until it counts as gone, its ephemeral queues,
--           [consumer and queue] of those that consume
-- answer    the epoch and the version, and those of its ephemeral queues that are there no more
--
-- Invariant: what is cleared has passed: an ephemeral queue whose process is silent, a mark after its window, a log's
-- entries after their retention, an entry of the store after its time. A few thousand of each, so that no beat is long.

local LIMIT = 5000
local until_ = now + request[3]

local missing = {}
for _, queue in ipairs(request[4]) do
  if call('HEXISTS', base .. ':routes', queue) == 1 then
    call('ZADD', base .. ':ephemeral', until_, queue)
  else
    missing[#missing + 1] = queue
  end
end
local gone = call('ZRANGEBYSCORE', base .. ':ephemeral', '-inf', now)
for _, queue in ipairs(gone) do remove(queue) end
if #gone > 0 then changed(request[2]) end

local listening = {}
for i, one in ipairs(request[5]) do
  listening[2 * i - 1] = until_
  listening[2 * i] = one
end
count('ZADD', base .. ':consumers', listening)
call('ZREMRANGEBYSCORE', base .. ':consumers', '-inf', now)

count('ZREM', base .. ':marks', call('ZRANGEBYSCORE', base .. ':marks', '-inf', now, 'LIMIT', 0, LIMIT))
for _, key in ipairs(call('ZRANGEBYSCORE', store .. ':expiries', '-inf', now, 'LIMIT', 0, LIMIT)) do drop(key) end
local retentions = call('HGETALL', base .. ':retentions')
for i = 1, #retentions, 2 do
  local oldest = string.format('%d', math.max(0, math.floor((now - tonumber(retentions[i + 1])) / 1000)))
  local log = base .. ':log:' .. retentions[i]
  -- `~` ends at the last whole node: then the few before it are left, of which the first may have passed too.
  if call('XTRIM', log, 'MINID', '~', oldest, 'LIMIT', LIMIT) < LIMIT then call('XTRIM', log, 'MINID', oldest) end
end

local meta = call('HMGET', base .. ':meta', 'epoch', 'version')
return {meta[1], meta[2], missing}
