#!lua flags=no-writes,allow-oom
-- Peek: what a queue would give next, without claiming it.
--
-- needs     common lanes
-- request   time, queue, limit, how many of these to leave out
-- answer    tries and record of each: first what can be claimed, then what waits for its time, last what is blocked; the
--           first of them if they are large

local queue, limit = request[2], request[3]
if call('HEXISTS', base .. ':routes', queue) == 0 then return redis.error_reply('NOQUEUE ' .. queue) end

local found = {}
for _, element in ipairs(call('LRANGE', queue .. ':ready', 0, limit - 1)) do
  found[#found + 1] = {published(element), row_of(element), element}
end
local due = call('ZRANGE', queue .. ':due', 0, limit - 1, 'WITHSCORES')
local ended = call('ZRANGEBYSCORE', queue .. ':leases', '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local ended_rows = {}
for _, members in ipairs({due, ended}) do
  for i = 1, #members, 2 do
    local row = row_of(members[i])
    found[#found + 1] = {tonumber(members[i + 1]), row, false}
    if members == ended then ended_rows[row] = true end
  end
end
table.sort(found, function(a, b)
  if a[1] == b[1] then return a[2] < b[2] end
  return a[1] < b[1]
end)

if #found < limit then
  local blocked = {}
  for _, member in ipairs(call('ZRANGE', queue .. ':lanes', 0, -1)) do
    if head(queue, string.sub(member, 1, LANE)) ~= member then
      blocked[#blocked + 1] = {string.sub(member, LANE + 1, LANE + SEQUENCE), row_in(member), false}
    end
  end
  table.sort(blocked, function(a, b) return a[1] < b[1] end)
  for _, one in ipairs(blocked) do found[#found + 1] = one end
end

local answer, size = {}, 0
for i = request[4] + 1, math.min(limit, #found) do
  if size >= BYTES then break end
  local row = found[i][2]
  local tries = tonumber(call('HGET', queue .. ':tries', row) or 0) + (ended_rows[row] and 1 or 0)
  answer[#answer + 1] = tries
  answer[#answer + 1] = string.sub(found[i][3] or call('HGET', queue .. ':held', row), ROW + 1)
  size = size + #answer[#answer]
end
return answer
