#!lua flags=allow-oom
-- Purge: drop what waits in a queue; what is in flight stays.
--
-- needs     common lanes
-- keys      routes, and all of the queue
-- request   time, queue
-- answer    how many were dropped
--
-- Invariant: a row under a lease that runs stays in `leases`, `held` and its lane, as it was.

local queue = request[2]
if call('HEXISTS', base .. ':routes', queue) == 0 then return redis.error_reply('NOQUEUE ' .. queue) end

local function keep(key, rows)
  local values, kept = ask('HMGET', key, rows), {}
  for i, row in ipairs(rows) do
    if values[i] then
      kept[#kept + 1] = row
      kept[#kept + 1] = values[i]
    end
  end
  call('DEL', key)
  count('HSET', key, kept)
end

local all = call('LLEN', queue .. ':ready') + call('HLEN', queue .. ':held')
call('ZREMRANGEBYSCORE', queue .. ':leases', '-inf', now)
local rows, flying = {}, {}
for i, member in ipairs(call('ZRANGE', queue .. ':leases', 0, -1)) do
  rows[i] = row_of(member)
  flying[rows[i]] = true
end
call('DEL', queue .. ':ready', queue .. ':due')
for _, key in ipairs({':held', ':tries', ':failures'}) do keep(queue .. key, rows) end
local standing = {}
each_standing(queue, function(member)
  if not flying[row_in(member)] then standing[#standing + 1] = member end
end)
count('ZREM', queue .. ':lanes', standing)
return all - #rows
