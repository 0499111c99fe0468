#!lua
-- Rewind: deliver again what the logs of a queue's topics hold.
--
-- needs     common order lanes again
-- keys      routes, all of the queue, the logs
-- request   time, queue, ordered, [log, retention]…, since
-- answer    how many were added
--
-- Invariant: what the queue has yet to end is not doubled.

local queue = request[2]
if call('HEXISTS', base .. ':routes', queue) == 0 then return redis.error_reply('NOQUEUE ' .. queue) end
return deliver_again(queue, request[3], request[4], request[5])
