#!lua flags=no-writes,allow-oom
-- Peek: what a queue would give next, without claiming it.
--
-- needs     common order lanes
-- keys      routes, and of the queue all but failures
-- request   time, queue, limit, how many of these to leave out
-- answer    tries and record of each: first what can be claimed, then what waits for its time, last what is blocked; the
--           first of them if they are large
--
-- It reads no more than it answers, but for what is blocked: to find the oldest of that, it looks at all lanes.
--
-- Invariant: it changes nothing: no attempt begins, no lease ends.

local queue, limit = request[2], request[3]
if call('HEXISTS', base .. ':routes', queue) == 0 then return redis.error_reply('NOQUEUE ' .. queue) end

-- Of what is blocked so many as are wanted, those that came first.
local function blocked(wanted)
  local oldest, last = {}, nil
  local function cut()
    table.sort(oldest, before)
    for i = #oldest, wanted + 1, -1 do oldest[i] = nil end
    last = #oldest == wanted and oldest[wanted][1]
  end
  each_standing(queue, function(member, is_head)
    local place = string.sub(member, LANE + 1, LANE + SEQUENCE)
    if is_head or last and place > last or due_in(member) == CLAIMED then return end
    oldest[#oldest + 1] = {place, row_in(member)}
    if #oldest >= 2 * wanted + AT_ONCE then cut() end
  end)
  cut()
  return oldest
end

local found = returning(queue, '+inf', limit)
for _, one in ipairs(found) do
  one[4] = #one[2] > ROW and 1 or 0 -- the lost attempt, which is not in `tries` yet
  one[2] = row_of(one[2])
end
for _, element in ipairs(call('LRANGE', queue .. ':ready', 0, limit - 1)) do
  found[#found + 1] = {published(element), row_of(element), element, 0}
end
sort(found)
if #found < limit then
  for _, one in ipairs(blocked(limit - #found)) do found[#found + 1] = one end
end

local answer, size = {}, 0
for i = request[4] + 1, math.min(limit, #found) do
  if size >= BYTES then break end
  local _, row, element, lost = unpack(found[i], 1, 4)
  answer[#answer + 1] = tonumber(call('HGET', queue .. ':tries', row) or 0) + (lost or 0)
  answer[#answer + 1] = string.sub(element or call('HGET', queue .. ':held', row), ROW + 1)
  size = size + #answer[#answer]
end
return answer
