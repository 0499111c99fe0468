#!lua flags=allow-oom
-- Remove: queues, with all that waits in them, and consumers.
--
-- needs     common routing
-- request   time, a new version, queues, [consumer and queue], whether processes are not to restore the queues
-- answer    true

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
