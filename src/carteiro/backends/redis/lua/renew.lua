#!lua flags=allow-oom
-- Renew: each lease its full length from now.
--
-- needs     common
-- keys      leases of the queues
-- request   time, [queue, lease, tokens]…: row and token of each, as one string
-- answer    the rows and tokens of those that are lost
--
-- Invariant: only a row that is in `leases` under its token is renewed.

local TOKEN = 20
local lost = {}
for i = 2, #request, 3 do
  local leases, until_, tokens = request[i] .. ':leases', now + request[i + 1], request[i + 2]
  for first = 1, #tokens, TOKEN do
    local token = string.sub(tokens, first, first + TOKEN - 1)
    if call('ZSCORE', leases, token) then
      call('ZADD', leases, until_, token)
    else
      lost[#lost + 1] = token
    end
  end
end
return lost
