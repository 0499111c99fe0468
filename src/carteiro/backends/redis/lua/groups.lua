#!lua flags=no-writes,allow-oom
-- Groups: how each queue stands.
--
-- needs     common lanes
-- keys      of each queue all but failures; dead:counts
-- request   time, [queue, route]
-- answer    the time, then for each queue: its route, how many are visible, wait for their time, of these for a retry, are
--           in flight, are blocked, are dead, and when the oldest of those was published, or 0
--
-- It counts without touching every message: of the claimed and the waiting it looks at the age of the first few, and for
-- retries at no more than LOOK. Once it has looked at ENOUGH it leaves the queues that are left to another call, so that
-- none is long.
--
-- Invariant: it changes nothing; each message of a queue is in one of the counts.

local FIRST = 49
local LOOK = 10000
local ENOUGH = 2000

local looked = 0

local function oldest_of(queue)
  local oldest = 0
  local function look(element)
    if element and (oldest == 0 or published(element) < oldest) then oldest = published(element) end
  end
  look(call('LINDEX', queue .. ':ready', 0))
  for key, row in pairs({[':due'] = row_of, [':leases'] = row_of, [':lanes'] = row_in}) do
    local rows = call('ZRANGE', queue .. key, 0, FIRST)
    for i, member in ipairs(rows) do rows[i] = row(member) end
    for _, element in ipairs(ask('HMGET', queue .. ':held', rows)) do look(element) end
    looked = looked + #rows
  end
  return oldest
end

local function retrying(queue)
  local total = 0
  local tried = call('HLEN', queue .. ':tries')
  looked = looked + math.min(tried, LOOK)
  if tried <= LOOK then
    for _, at in ipairs(ask('ZMSCORE', queue .. ':due', call('HKEYS', queue .. ':tries'))) do
      if at and tonumber(at) > now then total = total + 1 end
    end
  else
    local next_ones = call('ZRANGEBYSCORE', queue .. ':due', '(' .. string.format('%d', now), '+inf', 'LIMIT', 0, LOOK)
    for _, tries in ipairs(ask('HMGET', queue .. ':tries', next_ones)) do
      if tries then total = total + 1 end
    end
  end
  return total
end

local answer = {now}
for i = 1, #request[2], 2 do
  if looked >= ENOUGH then break end
  local queue = request[2][i]
  local due, leases = call('ZCARD', queue .. ':due'), call('ZCARD', queue .. ':leases')
  local come = call('ZCOUNT', queue .. ':due', '-inf', now)
  local ended = call('ZCOUNT', queue .. ':leases', '-inf', now)
  answer[#answer + 1] = {
    request[2][i + 1],
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
