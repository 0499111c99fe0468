#!lua flags=allow-oom
-- Claim: lease what is visible of some queues, up to the room of each, in the order of becoming visible.
--
-- needs     common order lanes leasing
-- keys      routes and the queues asked for; armed, told, and who waits for them
-- request   time, consumer and its channel, [queue, token, room, lease]…
-- answer    the time, then for each queue: the rows, the records (each kind as one string), {index, tries, failures}
--           of those that were claimed before, and when to look again: -1 not before it is woken
--
-- Invariant: a claimed row is in `leases` under its claim's token, and under no other. No two claims have the same, nor
-- two queues of one claim: a message has the same row in each queue, and row and token name one delivery.
-- Whoever gets less than it has room for arms the queue: the next one who adds to it wakes those who wait. Whoever gets
-- nothing at all waits for something to be handed over.
--
-- What becomes visible comes from three places, each of them in order: `ready`, `due` up to now, and the leases that
-- ended. Nearly always the latter two are empty. It looks at all queues before it leases anything of one: what is
-- claimed and then answered by an error would have to wait until its lease ends.

-- After BYTES of records the rest has to wait: what a server claims for a connection that it then closes is lost until
-- its lease ends.
local AT_A_TIME = 128
local FEW = 16

local size = 0
local taken, rows, fresh, room

local function take(row, element)
  taken[#taken + 1] = element
  rows[#rows + 1] = row
  size = size + #element
end

local function full()
  return #taken >= room or size >= BYTES
end

local function take_fresh(element)
  local row = row_of(element)
  fresh[#fresh + 1] = row
  fresh[#fresh + 1] = element
  take(row, element)
end

-- What returns and is visible now, if any of it is to be taken.
local function visible_again(queue)
  local found = returning(queue, now, room)
  if #found == 0 then return nil end
  -- Behind a backlog that is older, they have to wait like all others.
  local last = call('LINDEX', queue .. ':ready', room - 1)
  if last and published(last) < found[1][1] then return nil end
  return found
end

local function take_ready(queue)
  local some, before_it = FEW, size
  while not full() do
    local elements = call('LPOP', queue .. ':ready', math.min(room - #taken, some))
    if not elements then return end
    for n = 1, #elements do
      if size >= BYTES then
        for last = #elements, n, -1 do call('LPUSH', queue .. ':ready', elements[last]) end
        return
      end
      take_fresh(elements[n])
    end
    -- As many as fit, if the next ones are as large.
    some = math.min(AT_A_TIME, math.max(1, math.floor((BYTES - size) / (size - before_it) * #taken)))
  end
end

local function merge(queue, found)
  local some, read = {}, 0
  local popped, next_found = 0, 1
  while not full() do
    if popped == read then
      some = call('LRANGE', queue .. ':ready', read, read + FEW - 1)
      read = read + #some
    end
    local one, other = found[next_found], some[#some - read + popped + 1]
    if one and not (other and published(other) < one[1]) then
      next_found = next_found + 1
      local row = string.sub(one[2], 1, ROW)
      local is_blocked = false
      if #one[2] == ROW then
        call('ZREM', queue .. ':due', row)
      else
        call('ZREM', queue .. ':leases', one[2])
        call('HINCRBY', queue .. ':tries', row, 1)
        is_blocked = block(queue, row, one[1])
      end
      if not is_blocked then take(row, call('HGET', queue .. ':held', row)) end
    elseif other then
      popped = popped + 1
      take_fresh(other)
    else
      break
    end
  end
  if popped > 0 then call('LTRIM', queue .. ':ready', popped, -1) end
end

local function tried(queue)
  if call('EXISTS', queue .. ':tries') == 0 then return {} end
  local again = {}
  for i, tries in ipairs(ask('HMGET', queue .. ':tries', rows)) do
    if tries then again[#again + 1] = {i - 1, tonumber(tries), call('HGET', queue .. ':failures', rows[i])} end
  end
  return again
end

local function next_look(queue)
  if full() then return 0 end
  call('SADD', base .. ':armed', queue)
  local first = -1
  for _, key in ipairs({':due', ':leases'}) do
    local at = call('ZRANGE', queue .. key, 0, 0, 'WITHSCORES')[2]
    if at and (first == -1 or tonumber(at) < first) then first = tonumber(at) end
  end
  local told = tonumber(call('HGET', base .. ':told', queue) or -1)
  if told > now and (first == -1 or told < first) then first = told end
  return first
end

for i = 3, #request, 4 do
  if call('HEXISTS', base .. ':routes', request[i]) == 0 then return redis.error_reply('NOQUEUE ' .. request[i]) end
end
local answer, anything = {now}, false
for i = 3, #request, 4 do
  local queue, token, lease = request[i], request[i + 1], request[i + 3]
  room, taken, rows, fresh = request[i + 2], {}, {}, {}
  local found = visible_again(queue)
  if found then merge(queue, found) else take_ready(queue) end
  local row_text, record_text = '', ''
  if #rows > 0 then
    row_text, record_text = lease_to(queue, token, now + lease, rows, taken, fresh)
    anything = true
  end
  local again = tried(queue)
  answer[#answer + 1] = row_text
  answer[#answer + 1] = record_text
  answer[#answer + 1] = again
  answer[#answer + 1] = next_look(queue)
end
if not anything then
  for i = 3, #request, 4 do
    local consumer, channel = unpack(request[2])
    call('HSET', request[i] .. ':waiting', consumer, cmsgpack.pack({channel, unpack(request, i + 1, i + 3)}))
  end
end
return answer
