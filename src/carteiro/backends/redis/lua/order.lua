-- What comes first: lists of {when, name, …}, in the order of time and then of name.
--
-- Invariant: none of it writes.

local function before(a, b)
  if a[1] == b[1] then return a[2] < b[2] end
  return a[1] < b[1]
end

-- Put them in order; nearly always most of them are.
local function sort(found)
  for i = 2, #found do
    if before(found[i], found[i - 1]) then
      table.sort(found, before)
      return
    end
  end
end

-- What was delayed, failed, was handed back or was lost, up to `limit` of them that are visible at `at`: {when, row or row
-- and token}…, as `due` and `leases` have them. Of those that wait, what is later than now counts if `at` is `+inf`.
local function returning(queue, at, limit)
  local found = {}
  local due = call('ZRANGEBYSCORE', queue .. ':due', '-inf', at, 'WITHSCORES', 'LIMIT', 0, limit)
  local ended = call('ZRANGEBYSCORE', queue .. ':leases', '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  for _, members in ipairs({due, ended}) do
    for i = 1, #members, 2 do found[#found + 1] = {tonumber(members[i + 1]), members[i]} end
  end
  sort(found)
  return found
end
