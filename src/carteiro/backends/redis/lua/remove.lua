#!lua flags=allow-oom
-- Remove: queues, with all that waits in them, and consumers.
--
-- needs     common routing
-- keys      meta, routes, ephemeral, consumers, armed, told, removed; all of the queues
-- request   time, a new version, queues, [consumer and queue], whether processes are not to restore the queues
-- answer    true
--
-- Invariant: of a queue that is removed no key is left but, if asked for, the mark in `removed`.

local differs = false
for _, queue in ipairs(request[3]) do
  if remove(queue) then
    differs = true
    if request[5] then call('HSET', base .. ':removed', queue, now) end
  end
end
leave(request[4])
if differs then changed(request[2]) end
return 1
