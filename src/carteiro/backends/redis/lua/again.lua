-- Delivering again what the logs hold, and putting a queue's messages in or out of order.
--
-- All of it is linear in what the queue and the logs have, and works on many rows a call: it is one step of the server.
-- Messages on their way are {when published, row, element, when visible, lane if they have one}.
--
-- Invariant: a message that the queue has yet to end is not added a second time, and each lane's head has its time.

-- What the logs hold since then, in the order published; what is due later keeps its time.
local function logged(logs, since)
  local found, total = {}, 0
  for i = 1, #logs, 2 do
    local from = math.max(since, now - logs[i + 1])
    local first = string.format('%d', math.max(0, math.floor(from / 1000) - 1))
    while first do
      local entries = call('XRANGE', logs[i], first, '+', 'COUNT', 1000)
      for _, entry in ipairs(entries) do
        local element = entry[2][2]
        local at = published(element)
        if at >= from then
          total = total + 1
          found[total] = {at, row_of(element), element, tonumber(entry[2][4])}
        end
      end
      first = #entries == 1000 and '(' .. entries[1000][1]
    end
  end
  sort(found)
  return found
end

-- Add them in this order, each at the end of its lane if it has one.
local function add(queue, found)
  local sequence = tonumber(call('GET', base .. ':sequence') or 0)
  local held, due, lanes, taken = {}, {}, {}, {}
  for _, one in ipairs(found) do
    local row, at, lane = one[2], one[4], one[5]
    held[#held + 1] = row
    held[#held + 1] = one[3]
    if lane then
      sequence = sequence + 1
      lanes[#lanes + 1] = 0
      lanes[#lanes + 1] = member_of(lane, sequence, row, at)
    end
    if not lane or not taken[lane] and at ~= CLAIMED and not head(queue, lane) then
      due[#due + 1] = at
      due[#due + 1] = row
    end
    if lane then taken[lane] = true end
  end
  if #lanes > 0 then call('SET', base .. ':sequence', string.format('%d', sequence)) end
  count('HSET', queue .. ':held', held)
  count('ZADD', queue .. ':lanes', lanes)
  count('ZADD', queue .. ':due', due)
  wake(queue)
end

-- What is claimed: row -> whether its lease still runs; of those whose lease has ended row -> {when, row and token}.
local function claimed(queue)
  local running, ended = {}, {}
  local leases = call('ZRANGE', queue .. ':leases', 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local row, until_ = row_of(leases[i]), tonumber(leases[i + 1])
    running[row] = until_ > now
    if until_ <= now then ended[row] = {until_, leases[i]} end
  end
  return running, ended
end

-- Take out of an ordered queue what is not in flight, of each key in `keys`. What comes again, `coming` row -> true,
-- begins anew. Returns how many of those there were, and the others, which keep their tries and their times.
local function take_out(queue, keys, coming, running, ended)
  local members, rows, anew, others, leases = {}, {}, {}, {}, {}
  each_standing(queue, function(member)
    local row, lane = row_in(member), lane_in(member)
    if not keys[lane] or running[row] then return end
    members[#members + 1] = member
    rows[#rows + 1] = row
    if ended[row] then leases[#leases + 1] = ended[row][2] end
    if coming[row] then anew[#anew + 1] = row else others[#others + 1] = {0, row, false, due_in(member), lane} end
  end)
  local kept = {}
  for i, one in ipairs(others) do kept[i] = one[2] end
  local elements, times = ask('HMGET', queue .. ':held', kept), ask('ZMSCORE', queue .. ':due', kept)
  for i, one in ipairs(others) do
    one[1], one[3] = published(elements[i]), elements[i]
    if times[i] then one[4] = tonumber(times[i]) end
    if ended[kept[i]] then
      one[4] = ended[kept[i]][1]
      call('HINCRBY', queue .. ':tries', kept[i], 1)
    end
  end
  count('ZREM', queue .. ':lanes', members)
  count('ZREM', queue .. ':due', rows)
  count('ZREM', queue .. ':leases', leases)
  count('HDEL', queue .. ':tries', anew)
  count('HDEL', queue .. ':failures', anew)
  return #anew, others
end

-- Deliver again what the logs hold since then, but for what the queue has still to do. Returns how many more it has.
local function deliver_again(queue, ordered, logs, since)
  local found = logged(logs, since)
  if #found == 0 then return 0 end
  local there, keys, coming, again = {}, {}, {}, {}
  for _, row in ipairs(call('HKEYS', queue .. ':held')) do there[row] = true end
  for _, element in ipairs(call('LRANGE', queue .. ':ready', 0, -1)) do there[row_of(element)] = true end
  local running, ended = claimed(queue)
  for _, one in ipairs(found) do
    local row = one[2]
    local lane = ordered and not running[row] and lane_of(one[3])
    if lane then
      one[5], keys[lane], coming[row] = lane, true, true
    end
    if lane or not there[row] then again[#again + 1] = one end
  end
  local total = #again
  for i, one in ipairs(again) do
    if one[4] <= now then one[4] = now - (total - i) end
  end
  if next(keys) then
    -- What still waits gets its place among what comes again, so that each key's order holds.
    local dropped, others = take_out(queue, keys, coming, running, ended)
    for _, one in ipairs(others) do again[#again + 1] = one end
    sort(again)
    total = total - dropped
  end
  add(queue, again)
  return total
end

local function begin_order(queue)
  local found, due = {}, {}
  local running, ended = claimed(queue)
  local times = call('ZRANGE', queue .. ':due', 0, -1, 'WITHSCORES')
  for i = 1, #times, 2 do due[times[i]] = tonumber(times[i + 1]) end
  local function note(row, element)
    local at, lane = published(element), lane_of(element)
    local is_claimed = running[row] or ended[row]
    if lane or not is_claimed then
      found[#found + 1] = {at, row, element, is_claimed and CLAIMED or due[row] or at, lane}
    end
  end
  for _, element in ipairs(call('LRANGE', queue .. ':ready', 0, -1)) do note(row_of(element), element) end
  local held = call('HGETALL', queue .. ':held')
  for i = 1, #held, 2 do note(held[i], held[i + 1]) end
  sort(found)
  call('DEL', queue .. ':ready', queue .. ':due')
  add(queue, found)
end

local function end_order(queue)
  local due = {}
  each_standing(queue, function(member, is_head)
    if is_head or due_in(member) == CLAIMED then return end
    due[#due + 1] = due_in(member)
    due[#due + 1] = row_in(member)
  end)
  count('ZADD', queue .. ':due', due)
  call('DEL', queue .. ':lanes')
end
