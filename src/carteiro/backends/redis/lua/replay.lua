#!lua
-- Replay: send dead letters back to the queues that gave up on them.
--
-- needs     common order lanes again burial
-- keys      routes, the queues, dead and what begins with it
-- request   time, [queue, ordered, [id, element]…]…
-- answer    how many there were; NOQUEUE, and nothing done, where a queue is no longer there
--
-- Invariant: a letter leaves the dead in the step in which its message waits again, so that two who replay it at once
-- do not double it.

for i = 2, #request do
  local queue = request[i][1]
  if call('HEXISTS', base .. ':routes', queue) == 0 then return redis.error_reply('NOQUEUE ' .. queue) end
end
local total = 0
for i = 2, #request do
  local queue, ordered, letters = unpack(request[i])
  local asked, ids, all_words, found = {}, {}, {}, {}
  for n, letter in ipairs(letters) do asked[n] = letter[1] end
  for n, kept in ipairs(ask('HMGET', base .. ':dead', asked)) do
    if kept then
      local element = letters[n][2]
      ids[#ids + 1] = asked[n]
      all_words[#all_words + 1] = read(kept)
      found[#found + 1] = {0, row_of(element), element, now, ordered and lane_of(element)}
    end
  end
  exhume(ids, all_words)
  add(queue, found)
  total = total + #ids
end
return total
