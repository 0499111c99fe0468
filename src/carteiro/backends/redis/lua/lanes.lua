-- An ordered queue's keys. Of each key only the oldest message, its head, is in `due` or `leases`; the others are
-- blocked: they stand in `lanes` and `held` alone. Whoever takes a head away gives the next one its time.
--
-- A lane is the SHA-1 of the key, so that no key is the beginning of another. A row that was claimed before the queue was
-- declared ordered stands in its lane as CLAIMED; it is in `leases`, and nobody has to give it its time. Where it is not
-- the head and its claim ends without an end of the message, it is blocked from then on as others are.
--
-- Invariant: of a lane one row at most is in `due` or `leases`, its head; but for what was CLAIMED before there were
-- lanes.

local LANE = 40
local SEQUENCE = 16
local CLAIMED = -1

-- The text or bytes that stand at a place of a record, and the place after them. (The server's MessagePack knows no
-- binary type, which a body has.)
local WIDE = {[0xd9] = 'B', [0xc4] = 'B', [0xda] = '>H', [0xc5] = '>H', [0xdb] = '>I', [0xc6] = '>I'}
local function text_at(element, place)
  local kind = string.byte(element, place)
  if kind == 0xc0 then return nil, place + 1 end
  local size, first = kind - 0xa0, place + 1
  if WIDE[kind] then size, first = struct.unpack(WIDE[kind], element, first) end
  return first, first + size
end

local function lane_of(element)
  local place = ROW + 2
  local first
  for _ = 1, 4 do first, place = text_at(element, place) end -- id, topic, body, key
  return first and redis.sha1hex(string.sub(element, first, place - 1))
end

local function member_of(lane, sequence, row, due)
  return lane .. string.format('%016x', sequence) .. row .. string.format('%d', due)
end

local function lane_in(member)
  return string.sub(member, 1, LANE)
end

local function row_in(member)
  return string.sub(member, LANE + SEQUENCE + 1, LANE + SEQUENCE + ROW)
end

local function due_in(member)
  return tonumber(string.sub(member, LANE + SEQUENCE + ROW + 1))
end

-- What stands in a lane from a member on, or from its beginning.
local function some_of(queue, lane, from, limit)
  return call('ZRANGEBYLEX', queue .. ':lanes', from and '(' .. from or '[' .. lane, '[' .. lane .. 'g', 'LIMIT', 0, limit)
end

local function head(queue, lane)
  return some_of(queue, lane, nil, 1)[1]
end

-- The member of a row, and whether it is the head. Only one that was claimed before the queue was declared ordered can
-- be another: it is looked for among the older ones of its key.
local function find(queue, lane, row)
  local member = head(queue, lane)
  if member and row_in(member) == row then return member, true end
  while member do
    local members = some_of(queue, lane, member, 100)
    for _, other in ipairs(members) do
      if row_in(other) == row then return other, false end
    end
    member = members[#members]
  end
end

-- Put a row, which is in `held`, at the end of its lane.
local function join(queue, lane, row, due)
  local first = not head(queue, lane)
  call('ZADD', queue .. ':lanes', 0, member_of(lane, call('INCR', base .. ':sequence'), row, due))
  if first then call('ZADD', queue .. ':due', due, row) end
end

-- The head of a lane, unless it is claimed already, becomes visible at its own time.
local function unblock(queue, lane)
  local member = head(queue, lane)
  if member and due_in(member) ~= CLAIMED then
    call('ZADD', queue .. ':due', 'NX', due_in(member), row_in(member))
    wake(queue)
  end
end

-- Take a row, whose message is done, out of its lane.
local function quit(queue, lane, row)
  local member, first = find(queue, lane, row)
  if member then call('ZREM', queue .. ':lanes', member) end
  if first then unblock(queue, lane) end
end

-- A row, which is in `held`, is claimed no more and waits again. Where others of its key are older it is blocked until
-- they are done, and not visible before `due`; returns whether it is so.
local function block(queue, row, due)
  if call('EXISTS', queue .. ':lanes') == 0 then return false end
  local lane = lane_of(call('HGET', queue .. ':held', row))
  if not lane then return false end
  local member, first = find(queue, lane, row)
  if first or not member then return false end
  call('ZREM', queue .. ':lanes', member)
  call('ZADD', queue .. ':lanes', 0, string.sub(member, 1, LANE + SEQUENCE + ROW) .. string.format('%d', due))
  return true
end

-- Show `visit` each member of the lanes, and whether it is a head: lane after lane, each in its order.
local function each_standing(queue, visit)
  local first, lane = 0, nil
  while true do
    local members = call('ZRANGE', queue .. ':lanes', first, first + AT_ONCE - 1)
    for _, member in ipairs(members) do
      local own = lane_in(member)
      visit(member, own ~= lane)
      lane = own
    end
    if #members < AT_ONCE then return end
    first = first + AT_ONCE
  end
end
