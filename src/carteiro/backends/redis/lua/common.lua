-- What all the scripts stand on.
--
-- KEYS[1]  the base of all keys, `{prefix}`. The braces put every key of one prefix into one slot of a cluster, so a
--          script may reach any key that begins with it.
-- ARGV[1]  the request, in MessagePack: an array, its first item the time in microseconds since the epoch or false for
--          the server's own; what follows is each script's matter.
--
-- A queue is one (topic, group); its name is `{prefix}:topic [group]`, and its keys are that name and
--
--   :ready     LIST of elements: visible since they were published, in that order
--   :due       ZSET row -> when it becomes visible: what is delayed, waits for a retry, or was handed back
--   :leases    ZSET row + token -> when the lease ends: what is claimed. The token is the fence
--   :held      HASH row -> element, of whatever is not in `ready`
--   :tries     HASH row -> how many attempts ended without an end of the message, if any
--   :failures  HASH row -> those of them that failed, as the client wrote it
--   :waiting   HASH consumer -> {channel, token, room, lease}: who waits for something to be handed over
--   :lanes     ZSET of lane + sequence + row + when it is due, by name: what an ordered queue has of each key
--
-- Of all queues together, each after `{prefix}:`
--
--   armed            SET of queues: the next message wakes those who wait
--   told             HASH queue -> when at the latest, if that is not past, all who wait for it look again
--   consumers        ZSET consumer + ` ` + queue -> until when its process is known to live
--   sequence         the last place in a lane that was given
--   marks            ZSET topic + ` ` + message id -> until when a second one is dropped
--   publisher:<id>   the number of its last batch, for an hour
--   log:<topic>      STREAM of element and due, for its retention
--
-- and those of routing, entries and burial; its channels are `changed`, `to:<consumer>`, and `<queue>:wake`.
--
-- A row is 12 bytes that name a message's place in a queue; an element is a row, then the message's record (see
-- `ports/records.py`), whose last 8 bytes say when it was published. Times are microseconds, but for those.
--
-- Invariant: each message that a queue has yet to end is in exactly one of `ready`, `due`, `leases`, and blocked (in
-- `lanes`, behind another of its key); and it is in `held` unless it is in `ready`.

local base = KEYS[1]
local request = cmsgpack.unpack(ARGV[1])
local call = redis.call

local now = request[1]
if not now then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

local ROW = 12
-- What is large in one answer. A server closes a connection that listens, as ours does, if 32 MB wait to be sent on it.
local BYTES = 8 * 1024 * 1024
local AT_ONCE = 4000 -- values a call: Lua's stack holds some 8,000

-- A time, as text: made once for the many that have the same. The server takes 0.5 µs to make it of each number.
local texts = {}
local function as_text(time)
  local text = texts[time]
  if not text then
    text = string.format('%d', time)
    texts[time] = text
  end
  return text
end

-- Call a command that counts what it changed, with as many values as there are.
local function count(command, key, values)
  local size = #values
  if size == 0 then return 0 end
  if size <= AT_ONCE then return call(command, key, unpack(values)) end
  local total = 0
  for first = 1, size, AT_ONCE do
    total = total + call(command, key, unpack(values, first, math.min(first + AT_ONCE - 1, size)))
  end
  return total
end

-- Call a command that answers each of its values.
local function ask(command, key, values)
  local size = #values
  if size == 0 then return {} end
  if size <= AT_ONCE then return call(command, key, unpack(values)) end
  local answers = {}
  for first = 1, size, AT_ONCE do
    for _, answer in ipairs(call(command, key, unpack(values, first, math.min(first + AT_ONCE - 1, size)))) do
      answers[#answers + 1] = answer
    end
  end
  return answers
end

local function row_of(element)
  return string.sub(element, 1, ROW)
end

-- When an element was published.
local function published(element)
  return math.floor(struct.unpack('>d', element, #element - 7) * 1000000 + 0.5)
end

-- `seconds` as MessagePack has it: the end of a record, and of a dead letter.
local function packed_time(micros)
  return '\203' .. struct.pack('>d', micros / 1000000)
end

-- Let those who wait for the queue look at it now: something is visible, or will be sooner than they know.
local function wake(queue)
  if call('SREM', base .. ':armed', queue) == 1 then call('SPUBLISH', queue .. ':wake', '') end
end

-- Whether the client's picture of who gets what is the newest.
local function stale(version)
  return call('HGET', base .. ':meta', 'version') ~= version
end
