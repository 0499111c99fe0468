-- An ordered queue's keys. Of each key only the oldest message, its head, is in `due` or `leases`; the others are
-- blocked: they stand in `lanes` and `held` alone. Whoever takes a head away gives the next one its time.
--
-- A lane is the SHA-1 of the key, so that no key is the beginning of another. A row that was claimed before the queue was
-- declared ordered stands in its lane as CLAIMED; it is in `leases`, and nobody has to give it its time.

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

local function stand(queue, lane, row, due)
  local place = string.format('%016x', call('INCR', base .. ':sequence'))
  call('ZADD', queue .. ':lanes', 0, lane .. place .. row .. string.format('%d', due))
end

local function row_in(member)
  return string.sub(member, LANE + SEQUENCE + 1, LANE + SEQUENCE + ROW)
end

local function due_in(member)
  return tonumber(string.sub(member, LANE + SEQUENCE + ROW + 1))
end

local function head(queue, lane)
  return call('ZRANGEBYLEX', queue .. ':lanes', '[' .. lane, '[' .. lane .. 'g', 'LIMIT', 0, 1)[1]
end

-- Put a row, which is in `held`, at the end of its lane.
local function join(queue, lane, row, due)
  local first = not head(queue, lane)
  stand(queue, lane, row, due)
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
  local member = head(queue, lane)
  if member and row_in(member) == row then
    call('ZREM', queue .. ':lanes', member)
    unblock(queue, lane)
    return
  end
  -- It was claimed before the queue was declared ordered, and others of its key are older.
  for _, other in ipairs(call('ZRANGEBYLEX', queue .. ':lanes', '[' .. lane, '[' .. lane .. 'g')) do
    if row_in(other) == row then call('ZREM', queue .. ':lanes', other) end
  end
end
