#!lua flags=allow-oom
-- Declare: make queues and logs exist, or take changed options over.
--
-- needs     common order lanes again routing
-- keys      meta, routes, retentions, ephemeral, removed; the queues that change, and the logs that they begin with
-- request   time, the version that the client knows or false, a new version, a new epoch, [topic, retention] of logs,
--           [queue, route, ordered, lifetime or false, logs, since or false] of queues,
--           whether it only restores what a process declared before
-- answer    the epoch, and the queues that were removed and so are not restored; STALE, and nothing done, where the
--           version is not the newest
--
-- Invariant: the version changes if and only if who gets what did. A queue begins with what its logs hold since then
-- in the step that makes it exist, so that nothing is left out between the two.
--
-- It may exceed the server's memory limit: a worker that starts on a full server is what empties it.

local version, fresh = request[2], request[3]
if stale(version) then return redis.error_reply('STALE the routes have changed') end
local differs = call('HSETNX', base .. ':meta', 'epoch', request[4]) == 1

for _, log in ipairs(request[5]) do
  local retention = string.format('%d', log[2])
  if call('HGET', base .. ':retentions', log[1]) ~= retention then
    call('HSET', base .. ':retentions', log[1], retention)
    differs = true
  end
end

local made, away = to_make(request[6], request[7])
for _, one in ipairs(made) do
  local queue, route, ordered, lifetime, logs, since = unpack(one)
  local before = call('HGET', base .. ':routes', queue)
  if before ~= route then
    call('HSET', base .. ':routes', queue, route)
    differs = true
    local was_ordered = before and cmsgpack.unpack(before)[3]
    if before and ordered and not was_ordered then begin_order(queue) end
    if was_ordered and not ordered then end_order(queue) end
    if not before and since then deliver_again(queue, ordered, logs, since) end
  end
  if lifetime then
    call('ZADD', base .. ':ephemeral', now + lifetime, queue)
  else
    call('ZREM', base .. ':ephemeral', queue)
  end
  wake(queue)
end

if differs then changed(fresh) end
return {call('HGET', base .. ':meta', 'epoch'), away}
