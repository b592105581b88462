package pgtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// ClusterOptions say what a cluster promises.
type ClusterOptions struct {
	Async    bool     // the primary does not wait for its standbys: what a fail-over loses then
	Settings []string // of all three servers, name=value
}

// Cluster is a primary and two standbys. Unless it is asynchronous, a commit waits
// until one of the two has it, so that the loss of any one server loses nothing
// that was acknowledged. Its methods end the test on a failure; one goroutine
// calls them.
type Cluster struct {
	tb    nearkeytest.TB
	async bool
	nodes map[string]*Server

	synchronous bool           // commits wait for standbys
	promotions  int            // so far
	knows       map[string]int // how many promotions a node has gone through

	mu      sync.Mutex // guards primary
	primary string
}

// synchronous names all three, on all three: the one that is promoted keeps the
// promise.
const synchronous = "ANY 1 (a,b,c)"

const settleTimeout = time.Minute // for replication to get somewhere

// StartCluster starts a primary and two standbys that stream from it. All three
// begin as copies of one empty cluster.
func StartCluster(tb nearkeytest.TB, opts ClusterOptions) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, async: opts.Async, nodes: map[string]*Server{}, knows: map[string]int{}, primary: "a"}
	settings := append([]string{"wal_level=replica", "max_wal_senders=10", "wal_keep_size=1GB", "hot_standby=on",
		"full_page_writes=on", "wal_retrieve_retry_interval=200ms", "wal_receiver_timeout=5s", "wal_sender_timeout=5s"}, opts.Settings...)
	for _, name := range []string{"a", "b", "c"} {
		s, err := create(name, append(slices.Clone(settings), "cluster_name="+name))
		if err != nil {
			tb.Fatalf("start a cluster: %v", err)
		}
		s.adopt(tb)
		c.nodes[name] = s
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := c.start(name); err != nil {
			tb.Fatalf("start node %s: %v", name, err)
		}
	}
	c.must(c.awaitStandbys("streaming"))
	if !c.async { // only now: a commit before would wait for ever
		c.synchronous = true
		for name := range c.nodes {
			c.must(c.reconfigure(name))
		}
		c.must(c.awaitStandbys("quorum"))
	}
	return c
}

func (c *Cluster) must(err error) {
	c.tb.Helper()
	if err != nil {
		c.tb.Fatalf("cluster: %v", err)
	}
}

// start starts a node as what it is to be now.
func (c *Cluster) start(name string) error {
	s := c.nodes[name]
	if err := c.configure(name); err != nil {
		return err
	}
	c.knows[name] = c.promotions
	return s.start()
}

// configure writes what a node's file says of it: whom it follows. The file is
// written whole, since pg_rewind copies that of the other node.
func (c *Cluster) configure(name string) error {
	t, err := template()
	if err != nil {
		return err
	}
	s, lines := c.nodes[name], ""
	for _, setting := range s.settings { // for the recovery before pg_rewind: it must not remove the log that is to be rewound
		key, value, _ := strings.Cut(setting, "=")
		lines += key + " = '" + value + "'\n"
	}
	signal := filepath.Join(s.data(), "standby.signal")
	if name == c.primary {
		if err := os.Remove(signal); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else {
		if err := errors.Join(os.WriteFile(signal, nil, 0o600), t.own(signal)); err != nil {
			return err
		}
		lines += fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%d user=postgres application_name=%s connect_timeout=5'\n", c.nodes[c.primary].port, name)
	}
	if c.synchronous {
		lines += "synchronous_standby_names = '" + synchronous + "'\n"
	}
	path := filepath.Join(s.data(), "postgresql.auto.conf")
	return errors.Join(os.WriteFile(path, []byte(lines), 0o600), t.own(path))
}

// reconfigure configures a node that runs.
func (c *Cluster) reconfigure(name string) error {
	if err := c.configure(name); err != nil {
		return err
	}
	c.knows[name] = c.promotions
	_, err := c.nodes[name].exec("select pg_reload_conf()")
	return err
}

// await polls for a condition.
func (c *Cluster) await(what string, met func() (bool, error)) error {
	deadline := time.Now().Add(settleTimeout)
	for {
		ok, err := met()
		if ok && err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s after %s: %v", what, settleTimeout, err)
		}
		time.Sleep(4 * pollEvery)
	}
}

// awaitStandbys waits until two standbys stream from the primary, and until their
// word counts, if that is what they are to do ("quorum").
func (c *Cluster) awaitStandbys(as string) error {
	return c.await("two standbys: "+as, func() (bool, error) {
		out, err := c.nodes[c.primary].exec("select count(*) from pg_stat_replication where state = 'streaming' and '" + as + "' in (state, sync_state)")
		return out == "2", err
	})
}

// URL is a connection URL of all three nodes, for the one that takes writes.
func (c *Cluster) URL() string {
	var addresses []string
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		addresses = append(addresses, c.nodes[name].Address())
	}
	return "postgres://postgres@" + strings.Join(addresses, ",") + "/postgres?sslmode=disable&target_session_attrs=read-write&connect_timeout=2"
}

// Primary is the node that takes writes, or took them until it was killed.
func (c *Cluster) Primary() *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[c.primary]
}

// Standbys are the other nodes, running or not.
func (c *Cluster) Standbys() (standbys []*Server) {
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		if name != c.primary {
			standbys = append(standbys, c.nodes[name])
		}
	}
	return standbys
}

// KillPrimary ends all processes of the primary as one. Promote then makes one of
// the standbys take its place.
func (c *Cluster) KillPrimary() {
	c.tb.Helper()
	c.Primary().Kill()
}

// Promote makes the running standby that has most the primary, after a primary
// that does not run any more, and has the others follow it.
func (c *Cluster) Promote() *Server {
	c.tb.Helper()
	if c.Primary().Running() {
		c.tb.Fatalf("cluster: promote beside a primary that runs: kill it first")
	}
	winner, err := c.mostAdvanced()
	c.must(err)
	// The checkpoint writes the new timeline where pg_rewind looks for it. Without
	// it a node that has diverged is told that it need not be rewound.
	_, err = c.nodes[winner].exec("select pg_promote(true, 60)")
	c.must(err)
	c.mu.Lock()
	c.primary = winner
	c.mu.Unlock()
	c.promotions++
	for name, s := range c.nodes {
		if s.Running() {
			c.must(c.reconfigure(name))
		}
	}
	_, err = c.nodes[winner].exec("checkpoint")
	c.must(err)
	return c.nodes[winner]
}

// mostAdvanced returns the running standby that has received and replayed most,
// once nothing comes any more: what a standby says to have received begins anew
// at a segment's start when it is restarted.
func (c *Cluster) mostAdvanced() (winner string, err error) {
	const position = `select case when exists (select 1 from pg_stat_wal_receiver where status = 'streaming') then 'receiving'
		else (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::text || '|' || (pg_last_wal_replay_lsn() - '0/0')::text end`
	best := int64(-1)
	for name, s := range c.nodes {
		if name == c.primary || !s.Running() {
			continue
		}
		var last string
		var received, replayed int64
		err := c.await("standby at rest", func() (bool, error) {
			out, err := s.exec(position)
			if err != nil || out == "receiving" {
				return false, err
			}
			if _, err := fmt.Sscanf(out, "%d|%d", &received, &replayed); err != nil {
				return false, err
			}
			rest := out == last
			last = out
			return rest, nil
		})
		if err != nil {
			return "", err
		}
		if received > best {
			winner, best = name, received
		}
	}
	if winner == "" {
		return "", errors.New("no standby runs")
	}
	return winner, nil
}

// Rejoin makes every node that does not run a standby of the primary. One that
// was primary is rewound first: what it has and the new primary has not is gone.
// It must not stream before, under a name that commits wait for: it would confirm
// commits that it does not have.
func (c *Cluster) Rejoin() {
	c.tb.Helper()
	for name, s := range c.nodes {
		if s.Running() {
			continue
		}
		if c.knows[name] < c.promotions {
			c.must(c.rewind(name))
		}
		c.must(c.start(name))
	}
	want := "streaming"
	if c.synchronous {
		want = "quorum"
	}
	c.must(c.awaitStandbys(want))
}

// rewind makes a node that missed a promotion, as primary or as standby, a copy of
// the primary again.
func (c *Cluster) rewind(name string) error {
	t, err := template()
	if err != nil {
		return err
	}
	s := c.nodes[name]
	// pg_rewind has a killed server recover by itself first, which a standby does not.
	if err := os.Remove(filepath.Join(s.data(), "standby.signal")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd := t.command("pg_rewind", "-D", s.data(), "--no-sync", "--source-server",
		fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", c.nodes[c.primary].port))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("rewind node %s: %w: %s", name, err, out)
	}
	return nil
}
