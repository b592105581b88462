package main

import (
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// line is the way between nearkey and a server, which can be slow, or cut.
type line struct {
	address  string // where nearkey connects
	upstream string // the server
	server   *toxiproxy.ApiServer
	proxy    *toxiproxy.Proxy
}

// silence switches off a log that toxiproxy writes beside the one that it is given.
func silence() { zerolog.SetGlobalLevel(zerolog.Disabled) }

// newLine opens a line to a server, until the site is closed.
func newLine(s *site, upstream string) (*line, error) {
	l := &line{upstream: upstream, address: "127.0.0.1:0",
		server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())}
	if err := l.open(); err != nil {
		return nil, err
	}
	s.Cleanup(func() { l.proxy.Stop() })
	return l, nil
}

func (l *line) open() error {
	l.proxy = toxiproxy.NewProxy(l.server, l.upstream, l.address, l.upstream)
	if err := l.proxy.Start(); err != nil {
		return fmt.Errorf("open a line to %s: %w", l.upstream, err)
	}
	l.address = l.proxy.Listen
	return nil
}

// toxic is what can be wrong with a line, in both directions.
type toxic struct{ kind, attributes string }

var (
	slow      = toxic{"latency", `{"latency": 150, "jitter": 100}`}
	lagging   = toxic{"latency", `{"latency": 600, "jitter": 200}`}
	blackHole = toxic{"timeout", `{"timeout": 0}`}
	resetting = toxic{"reset_peer", `{"timeout": 300}`}
	slowClose = toxic{"slow_close", `{"delay": 1500}`}
	narrow    = toxic{"bandwidth", `{"rate": 200}`} // KB/s
)

// spoil makes a line bad, for connections that there are and new ones.
func (l *line) spoil(toxics ...toxic) error {
	for _, t := range toxics {
		for _, direction := range []string{"upstream", "downstream"} {
			text := fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": %s}`, t.kind, direction, t.attributes)
			if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
				return fmt.Errorf("spoil the line to %s: %w", l.upstream, err)
			}
		}
	}
	return nil
}

// cut closes all connections and takes no new ones.
func (l *line) cut() { l.proxy.Stop() }

// mend makes a line good again. It is opened anew: what was under way is cut, as
// it is when a network comes back after long.
func (l *line) mend() error {
	l.proxy.Stop()
	return l.open()
}
