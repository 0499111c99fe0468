#!lua
-- Publish: each message into the queues and the log of its route, all of them or none.
--
-- needs     common lanes leasing places fanout
-- request   time, version, the publisher's key, number of the batch, [route, entries]…
-- answer    how many listen, for each that goes to a channel, or false and nothing done if it was published before; the
--           error STALE, and nothing done, where the version of the routes is not the newest, and MISPLACED where a key
--           that is not ours holds something else
--
-- Invariant: a publisher's numbers ascend, and a batch is published if its number is higher than the last. The last one
-- is remembered for an hour, which is how long a publisher may try again.
--
-- Without the flag `allow-oom`: a server that is full refuses it before it began.

if stale(request[2]) then return redis.error_reply('STALE the routes have changed') end
local publisher, number = request[3], request[4]
local last = call('GET', publisher)
if last and tonumber(last) >= number then return false end
for i = 5, #request, 2 do
  local wrong = misplaced(request[i][4])
  if wrong then return wrong end
end
local heard = {}
for i = 5, #request, 2 do
  fan_out(request[i], request[i + 1], heard)
end
call('SET', publisher, number, 'EX', 3600)
return heard
