-- Dead letters: `dead` HASH id -> [[queue of the dead, topic, group, reason, failures], attempt, when it died, record];
-- `dead:all` and `dead:of:<queue>` ZSET of the ids in the order of death; `dead:counts` HASH queue -> how many.
--
-- Invariant: an id is in `dead`, in `dead:all` and in one `dead:of:<queue>`, or in none; the counts are of these.

local function bury(letter, queue, element, attempt)
  local id = call('INCR', base .. ':dead:sequence')
  local record = string.sub(element, ROW + 1)
  call('HSET', base .. ':dead', id, '\148' .. letter[2] .. cmsgpack.pack(attempt) .. packed_time(now) .. record)
  call('ZADD', base .. ':dead:all', id, id)
  call('ZADD', base .. ':dead:of:' .. letter[1], id, id)
  call('HINCRBY', base .. ':dead:counts', queue, 1)
end

-- The ids of a queue of the dead, or of all, that follow `after`, up to `limit` unless it is 0; or those of `ids` that
-- are there.
local function letters(queue, ids, limit, after)
  local order = queue and base .. ':dead:of:' .. queue or base .. ':dead:all'
  if not ids then
    return call('ZRANGEBYSCORE', order, '(' .. (after or 0), '+inf', 'LIMIT', 0, limit == 0 and -1 or limit)
  end
  table.sort(ids, function(a, b) return tonumber(a) < tonumber(b) end)
  local found = {}
  for i, place in ipairs(ask('ZMSCORE', order, ids)) do
    if place and (limit == 0 or #found < limit) then found[#found + 1] = ids[i] end
  end
  return found
end

-- The words of a letter, and when it died, in seconds.
local function read(letter)
  local place, words = cmsgpack.unpack_one(letter, 1)
  local _, died_at = cmsgpack.unpack_one(letter, cmsgpack.unpack_one(letter, place))
  return words, died_at
end

-- Take letters out: their ids, and the words of each.
local function exhume(ids, all_words)
  local ids_of, counts, gone = {}, base .. ':dead:counts', {}
  for i, words in ipairs(all_words) do
    local name, queue = words[1], base .. ':' .. words[2] .. ' [' .. words[3] .. ']'
    ids_of[name] = ids_of[name] or {}
    table.insert(ids_of[name], ids[i])
    gone[queue] = (gone[queue] or 0) + 1
  end
  count('HDEL', base .. ':dead', ids)
  count('ZREM', base .. ':dead:all', ids)
  for name, some in pairs(ids_of) do count('ZREM', base .. ':dead:of:' .. name, some) end
  for queue, total in pairs(gone) do
    if call('HINCRBY', counts, queue, -total) == 0 then call('HDEL', counts, queue) end
  end
end
