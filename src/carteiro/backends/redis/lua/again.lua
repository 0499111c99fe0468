-- Delivering again what the logs hold, and putting a queue's messages in or out of order.

-- Of what a queue has yet to end: row -> its element; row -> its member of `leases`, and whether that lease still runs.
local function undone(queue)
  local elements, leases, running = {}, {}, {}
  for _, element in ipairs(call('LRANGE', queue .. ':ready', 0, -1)) do elements[row_of(element)] = element end
  local held = call('HGETALL', queue .. ':held')
  for i = 1, #held, 2 do elements[held[i]] = held[i + 1] end
  local claimed = call('ZRANGE', queue .. ':leases', 0, -1, 'WITHSCORES')
  for i = 1, #claimed, 2 do
    local row = row_of(claimed[i])
    leases[row] = claimed[i]
    running[row] = tonumber(claimed[i + 1]) > now
  end
  return elements, leases, running
end

-- What the logs hold since then, in the order published: {published, element, when it was due}…
local function logged(logs, since)
  local found = {}
  for i = 1, #logs, 2 do
    local from = math.max(since, now - logs[i + 1])
    local first = string.format('%d', math.max(0, math.floor(from / 1000) - 1))
    while first do
      local entries = call('XRANGE', logs[i], first, '+', 'COUNT', 1000)
      for _, entry in ipairs(entries) do
        local element, due = entry[2][2], tonumber(entry[2][4])
        local at = published(element)
        if at >= from then found[#found + 1] = {at, element, due, #found} end
      end
      first = #entries == 1000 and '(' .. entries[1000][1]
    end
  end
  table.sort(found, function(a, b)
    if a[1] == b[1] then return a[4] < b[4] end
    return a[1] < b[1]
  end)
  return found
end

-- Add them as visible now, in this order; what is due later keeps its time.
local function add(queue, ordered, found)
  for i, one in ipairs(found) do
    local element, visible = one[2], now - (#found - i)
    if one[3] > now then visible = one[3] end
    local row, lane = row_of(element), ordered and lane_of(element)
    call('HSET', queue .. ':held', row, element)
    if lane then join(queue, lane, row, visible) else call('ZADD', queue .. ':due', visible, row) end
  end
  wake(queue)
end

-- Deliver again what the logs hold since then, but for what the queue has still to do. Returns how many more it has.
local function deliver_again(queue, ordered, logs, since)
  local found = logged(logs, since)
  if #found == 0 then return 0 end
  local elements, leases, running = undone(queue)
  local again, dropped = {}, 0
  for _, one in ipairs(found) do
    local row = row_of(one[2])
    local lane = ordered and elements[row] and not running[row] and lane_of(one[2])
    if lane then
      -- What still waits is put back into its place among what comes again, so that each key's order holds.
      dropped = dropped + 1
      if leases[row] then call('ZREM', queue .. ':leases', leases[row]) end
      call('ZREM', queue .. ':due', row)
      call('HDEL', queue .. ':tries', row)
      call('HDEL', queue .. ':failures', row)
      for _, member in ipairs(call('ZRANGEBYLEX', queue .. ':lanes', '[' .. lane, '[' .. lane .. 'g')) do
        if row_in(member) == row then call('ZREM', queue .. ':lanes', member) end
      end
    end
    if lane or not elements[row] then again[#again + 1] = one end
  end
  add(queue, ordered, again)
  return #again - dropped
end

local function begin_order(queue)
  local elements, leases = undone(queue)
  local rows, due = {}, {}
  for row, element in pairs(elements) do
    rows[#rows + 1] = {published(element), row, element}
    due[row] = tonumber(call('ZSCORE', queue .. ':due', row) or published(element))
  end
  table.sort(rows, function(a, b)
    if a[1] == b[1] then return a[2] < b[2] end
    return a[1] < b[1]
  end)
  call('DEL', queue .. ':ready', queue .. ':due')
  for _, one in ipairs(rows) do
    local row, lane = one[2], lane_of(one[3])
    call('HSET', queue .. ':held', row, one[3])
    if lane and leases[row] then
      stand(queue, lane, row, CLAIMED)
    elseif lane then
      join(queue, lane, row, due[row])
    elseif not leases[row] then
      call('ZADD', queue .. ':due', due[row], row)
    end
  end
end

local function end_order(queue)
  local _, leases = undone(queue)
  for _, member in ipairs(call('ZRANGE', queue .. ':lanes', 0, -1)) do
    local row = row_in(member)
    if not leases[row] then call('ZADD', queue .. ':due', 'NX', due_in(member), row) end
  end
  call('DEL', queue .. ':lanes')
end
