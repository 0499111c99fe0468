#!lua
-- Publish: each message into the queues and the log of its route, all of them or none.
--
-- needs     common lanes leasing fanout
-- request   time, version, [route, entries]…
-- answer    true; the error STALE, and nothing done, where the version of the routes is not the newest
--
-- Without the flag `allow-oom`: a server that is full refuses it before it began.

if stale(request[2]) then return redis.error_reply('STALE the routes have changed') end
for i = 3, #request, 2 do
  fan_out(request[i], request[i + 1])
end
return 1
