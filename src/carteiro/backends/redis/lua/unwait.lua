#!lua flags=allow-oom
-- Unwait: nothing more is to be handed over.
--
-- needs     common
-- request   time, channel, queues
-- answer    true

local waiting = base .. ':waiting'
for i, entry in ipairs(ask('HMGET', waiting, request[3])) do
  if entry and cmsgpack.unpack(entry)[1] == request[2] then call('HDEL', waiting, request[3][i]) end
end
return 1
