#!lua
-- Replay: send dead letters back to the queues that gave up on them.
--
-- needs     common lanes again burial
-- request   time, [id, queue, ordered, element]…
-- answer    how many there were; NOQUEUE, and nothing done, where a queue is no longer there
--
-- Invariant: a letter leaves the dead in the step in which its message waits again, so that two who replay it at once
-- do not double it.

for i = 2, #request do
  if call('HEXISTS', base .. ':routes', request[i][2]) == 0 then
    return redis.error_reply('NOQUEUE ' .. request[i][2])
  end
end
local total = 0
for i = 2, #request do
  local id, queue, ordered, element = unpack(request[i])
  local letter = call('HGET', base .. ':dead', id)
  if letter then
    exhume(id, letter)
    add(queue, ordered, {{0, element, 0}})
    total = total + 1
  end
end
return total
