#!lua
-- Publish: each message into the queues and the log of its route, all of them or none.
--
-- needs     common lanes leasing places fanout
-- keys      meta, the publisher's key, marks, sequence, armed, told; the queues and logs of the routes, or places of
--           others
-- request   time, version, the publisher's key, number of its last batch, number of this one, [route, entries]…
-- answer    how many listen, for each that goes to a channel; or the number of the publisher's last batch (0 if there is
--           none), and nothing done, if that is another one; the error STALE, and nothing done, where the version of the
--           routes is not the newest, and MISPLACED where a key that is not ours holds something else
--
-- Invariant: a publisher uses each number for one batch, and a batch is published if its publisher names the last one
-- rightly. So of batches that name the same last one, one is published at most. The last one is remembered for an hour,
-- which is how long a publisher may try again.
--
-- Without the flag `allow-oom`: a server that is full refuses it before it began.

local publisher, expected, number = request[3], request[4], request[5]
local last = tonumber(call('GET', publisher) or 0)
if last ~= expected then return last end
if stale(request[2]) then return redis.error_reply('STALE the routes have changed') end
for i = 6, #request, 2 do
  local wrong = misplaced(request[i][4])
  if wrong then return wrong end
end
local heard = {}
for i = 6, #request, 2 do
  fan_out(request[i], request[i + 1], heard)
end
call('SET', publisher, number, 'EX', 3600)
return heard
