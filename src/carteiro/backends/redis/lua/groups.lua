#!lua flags=no-writes,allow-oom
-- Groups: how each queue stands.
--
-- needs     common lanes
-- request   time
-- answer    the time, consumer and queue of all that consume, then for each queue: its route, how many are visible,
--           wait for their time, of these for a retry, are in flight, are blocked, are dead, and when the oldest of
--           those was published, or 0
--
-- It counts without touching every message: of the claimed and the waiting it looks at the age of the first thousand.

local LOOK = 999

local function oldest_of(queue)
  local oldest = 0
  local function look(element)
    if element and (oldest == 0 or published(element) < oldest) then oldest = published(element) end
  end
  look(call('LINDEX', queue .. ':ready', 0))
  for key, row in pairs({[':due'] = row_of, [':leases'] = row_of, [':lanes'] = row_in}) do
    local rows = call('ZRANGE', queue .. key, 0, LOOK)
    for i, member in ipairs(rows) do rows[i] = row(member) end
    for _, element in ipairs(ask('HMGET', queue .. ':held', rows)) do look(element) end
  end
  return oldest
end

local function retrying(queue)
  local total = 0
  for _, at in ipairs(ask('ZMSCORE', queue .. ':due', call('HKEYS', queue .. ':tries'))) do
    if at and tonumber(at) > now then total = total + 1 end
  end
  return total
end

local answer = {now, call('ZRANGEBYSCORE', base .. ':consumers', '(' .. string.format('%d', now), '+inf')}
local routes = call('HGETALL', base .. ':routes')
for i = 1, #routes, 2 do
  local queue = routes[i]
  local due, leases = call('ZCARD', queue .. ':due'), call('ZCARD', queue .. ':leases')
  local come = call('ZCOUNT', queue .. ':due', '-inf', now)
  local ended = call('ZCOUNT', queue .. ':leases', '-inf', now)
  answer[#answer + 1] = {
    routes[i + 1],
    call('LLEN', queue .. ':ready') + come + ended,
    due - come,
    retrying(queue),
    leases - ended,
    call('HLEN', queue .. ':held') - due - leases,
    tonumber(call('HGET', base .. ':dead:counts', queue) or 0),
    oldest_of(queue),
  }
end
return answer
