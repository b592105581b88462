package rest

import (
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// How old an answer may be, a reader says with a cacheTtl, in seconds, as a Worker
// does: GET …/values/{key}?cacheTtl=60 (or cache_ttl), and "cacheTtl" in the body
// of a bulk get. The real API has no such parameters. A reader who says nothing
// accepts Config.MaxAge; one who sends Cache-Control: no-cache nothing older than
// what was acknowledged when it asked.

// maxAge is the staleness that a reader accepts who asks for a cacheTtl, if not
// empty.
func (s *Server) maxAge(c *call, cacheTTL string) (time.Duration, error) {
	accepted := s.accepts
	if cacheTTL != "" {
		var err error
		if accepted, err = s.rules.Limits.CheckCacheTTL(cacheTTL); err != nil {
			return 0, err
		}
	}
	if noCache(c.r.Header["Cache-Control"]) {
		accepted = 0
	}
	return accepted, nil
}

// cacheTTL is the cacheTtl of a query string.
func cacheTTL(query string) (string, error) {
	if query == "" {
		return "", nil
	}
	text, err := parameter(query, "cacheTtl")
	if err != nil || text != "" {
		return text, err
	}
	return parameter(query, "cache_ttl")
}

func noCache(headers []string) bool {
	for _, h := range headers {
		for directive := range strings.SplitSeq(h, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-cache") {
				return true
			}
		}
	}
	return false
}

// tell says in the answer's head how old it is and how the nearest tier came by
// it. A store that is no tier has nothing to say.
func (s *Server) tell(c *call, a *kv.Answer) {
	if a.Cache == kv.NoCache {
		return
	}
	s.cache.Count(a.Cache)
	h := c.w.Header()
	c.ageHeader[0], c.cacheHeader[0] = strconv.Itoa(int(a.Age/time.Second)), string(a.Cache)
	h["Age"], h["Cf-Cache-Status"] = c.ageHeader[:], c.cacheHeader[:]
}
