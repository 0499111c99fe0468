#!lua flags=allow-oom
-- Unwait: nothing more is to be handed over.
--
-- needs     common
-- keys      waiting of the queues
-- request   time, consumer, its channel, queues
-- answer    true
--
-- It need not be the last that the server hears of an old connection: what waits on another channel still waits.
--
-- Invariant: only what this consumer left under this channel goes.

local consumer, channel = request[2], request[3]
for _, queue in ipairs(request[4]) do
  local entry = call('HGET', queue .. ':waiting', consumer)
  if entry and cmsgpack.unpack(entry)[1] == channel then call('HDEL', queue .. ':waiting', consumer) end
end
return 1
