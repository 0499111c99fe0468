#!lua flags=allow-oom
-- Beat: a process says that it lives, and clears away what has passed.
--
-- needs     common routing entries joins
-- keys      meta, ephemeral and consumers, marks, the store, joins and its sets, the logs and their retentions, removed
-- request   time, a new version, how long until it counts as gone, its ephemeral queues,
--           [consumer and queue] of those that consume
-- answer    the version, those of its ephemeral queues that are there no more, and 1 if there is more to clear
--
-- Invariant: what is cleared has passed: an ephemeral queue whose process is silent while others are not, a mark after its
-- window, a log's entries after their retention, an entry of the store or a set that is joined after its time. A few
-- thousand of each, so that no beat is long.

local LIMIT = 5000
local DAY = 86400 * 1000000
local until_ = now + request[3]

local last = tonumber(call('HGET', base .. ':meta', 'beat') or 0)
call('HSET', base .. ':meta', 'beat', string.format('%d', now))
if now - last > request[3] / 2 then
  -- Nobody could say that it lives: the server was away.
  for _, key in ipairs({base .. ':ephemeral', base .. ':consumers'}) do
    local living = {}
    for i, member in ipairs(call('ZRANGE', key, 0, -1)) do
      living[2 * i - 1] = until_
      living[2 * i] = member
    end
    count('ZADD', key, living)
  end
end

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

local more = false
local function passed(key)
  local found = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, LIMIT)
  more = more or #found == LIMIT
  return found
end
leave(passed(base .. ':consumers'))
count('ZREM', base .. ':marks', passed(base .. ':marks'))
drop_all(passed(store .. ':expiries'))
for _, key in ipairs(passed(joins)) do forget(key) end

local removed = call('HGETALL', base .. ':removed')
for i = 1, #removed, 2 do
  if now - tonumber(removed[i + 1]) > DAY then call('HDEL', base .. ':removed', removed[i]) end
end

local trimmed = 0
local retentions = call('HGETALL', base .. ':retentions')
for i = 1, #retentions, 2 do
  local oldest = string.format('%d', math.max(0, math.floor((now - tonumber(retentions[i + 1])) / 1000)))
  local log = base .. ':log:' .. retentions[i]
  local nodes = 1
  while nodes > 0 and trimmed < LIMIT do
    nodes = call('XTRIM', log, 'MINID', '~', oldest, 'LIMIT', LIMIT)
    trimmed = trimmed + nodes
  end
  -- `~` takes whole nodes only, and the exact way has no limit: it is for the one node that has passed in part.
  if nodes == 0 then call('XTRIM', log, 'MINID', oldest) end
end

return {call('HGET', base .. ':meta', 'version'), missing, (more or trimmed >= LIMIT) and 1 or 0}
