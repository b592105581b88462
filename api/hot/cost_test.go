package hot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
	"github.com/nearkey/nearkey/kv"
)

// TestCost measures the CPU time of a request beside net/http with the same
// handler and nginx with the same bytes in a file:
//
//	go test -run TestCost -v ./api/hot -cost 5
//
// It needs two cores, taskset, wrk and nginx.
var (
	costRounds = flag.Int("cost", 0, "rounds of TestCost; 0: none")
	costLoads  = flag.String("cost-loads", "32,128,32 pipelined", "connections of wrk, pipelined or not")
	costTime   = flag.Duration("cost-time", 3*time.Second, "time of a round")
	costServe  = flag.String("cost-serve", "", "serve as a subject of TestCost: hot or http")
	costPprof  = flag.String("cost-pprof", "", "write a CPU profile of the hot subject to this file")
)

const costKey = "some-key-of-usual-length"

func costValue() []byte { return bytes.Repeat([]byte("nearkey. "), 32)[:288] }

// TestCostServe is a subject, in a process of its own. It serves until its input
// ends.
func TestCostServe(t *testing.T) {
	if *costServe == "" {
		t.Skip("serves TestCost")
	}
	w := newWorld(t)
	w.put(costKey, kv.Record{Value: costValue()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := interface {
		Close() error
	}(nil)
	done := make(chan error, 1)
	if *costServe == "hot" {
		s := New(w.config())
		server = s
		go func() { done <- s.Serve(t.Context(), l) }()
	} else {
		s := rest.HTTPServer(w.handler)
		server = s
		go func() { done <- s.Serve(l) }()
	}
	if *costPprof != "" {
		f, err := os.Create(*costPprof)
		if err != nil {
			t.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	fmt.Printf("\nserving http://%s%s\n", l.Addr(), w.path(costKey))
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// subject is a server that is measured.
type subject struct {
	name string
	url  string
	pids []int
	cost map[string][]float64 // µs of CPU for a request, by load
	rate map[string][]float64
}

// startSubject starts this binary again as a server.
func startSubject(t *testing.T, name string, args ...string) *subject {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "taskset", append([]string{"-c", "0", os.Args[0], "-test.run=^TestCostServe$", "-cost-serve=" + name}, args...)...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			t.Cleanup(func() {
				_ = in.Close()
				_, _ = io.Copy(io.Discard, out)
				if err := cmd.Wait(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
			return &subject{name: name, url: url, pids: []int{cmd.Process.Pid}}
		}
	}
	t.Fatalf("%s: did not begin to serve", name)
	return nil
}

const nginxConfig = `%[1]s
daemon off;
worker_processes 1;
pid %[2]s/pid;
error_log stderr;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	tcp_nodelay on;
	keepalive_requests 1000000000;
	keepalive_timeout 600s;
	open_file_cache max=10000 inactive=600s;
	open_file_cache_valid 600s;
	default_type application/octet-stream;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen %[3]s;
		root %[2]s/root;
		add_header X-Content-Type-Options nosniff;
		add_header X-Request-Id $request_id;
	}
}
`

// startNginx serves the value from a file at the same path.
func startNginx(t *testing.T, path string) *subject {
	t.Helper()
	home := t.TempDir()
	file := filepath.Join(home, "root", path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, costValue(), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	config := filepath.Join(home, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, user, home, address), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "taskset", "-c", "0", "nginx", "-p", home, "-e", "stderr", "-c", config)
	running, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = running.End(os.Interrupt, nearkeytest.Patience) })
	n := &subject{name: "nginx", url: "http://" + address + path}
	nearkeytest.Until(t, "nginx serves", func() bool {
		answer, err := http.Get(n.url)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return answer.StatusCode == 200 && bytes.Equal(body, costValue())
	})
	if n.pids, err = process.Children(running.Pid()); err != nil {
		t.Fatal(err)
	}
	return n
}

// cpu is the CPU time that the subject has used.
func (s *subject) cpu(t *testing.T) time.Duration {
	t.Helper()
	used, err := process.CPU(s.pids...)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in ([\d.]+)s`)

// pipelined has wrk send sixteen requests at once.
const pipelined = `init = function(args)
	local r = {}
	for i = 1, 16 do r[i] = wrk.format() end
	all = table.concat(r)
end
request = function() return all end
`

// round loads the subject once.
func (s *subject) round(t *testing.T, load string, args ...string) {
	t.Helper()
	if s.cost == nil {
		s.cost, s.rate = map[string][]float64{}, map[string][]float64{}
	}
	args = append([]string{"-c", "1", "wrk", "-t1", "-d" + costTime.String(), "-H", "Authorization: Bearer " + rootToken}, args...)
	before := s.cpu(t)
	out, err := exec.CommandContext(t.Context(), "taskset", append(args, s.url)...).CombinedOutput()
	used := s.cpu(t) - before
	m := wrkRequests.FindSubmatch(out)
	if err != nil || m == nil || bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
		t.Fatalf("%s: wrk: %v\n%s", s.name, err, out)
	}
	requests, _ := strconv.ParseFloat(string(m[1]), 64)
	seconds, _ := strconv.ParseFloat(string(m[2]), 64)
	s.cost[load] = append(s.cost[load], float64(used.Microseconds())/requests)
	s.rate[load] = append(s.rate[load], requests/seconds)
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// ratios are those of rounds that followed each other.
func ratios(a, b []float64) (all []float64) {
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return all
}

func TestCost(t *testing.T) {
	if *costRounds == 0 {
		t.Skip("measures for some minutes; -cost says how many rounds")
	}
	var profile []string
	if *costPprof != "" {
		profile = append(profile, "-cost-pprof="+*costPprof)
	}
	hot := startSubject(t, "hot", profile...)
	plain := startSubject(t, "http")
	_, path, _ := strings.Cut(strings.TrimPrefix(hot.url, "http://"), "/")
	nginx := startNginx(t, "/"+path)
	script := filepath.Join(t.TempDir(), "pipelined.lua")
	if err := os.WriteFile(script, []byte(pipelined), 0o600); err != nil {
		t.Fatal(err)
	}
	subjects := []*subject{hot, nginx, plain}
	loads := strings.Split(*costLoads, ",")
	for range *costRounds {
		for _, load := range loads {
			connections, deep := strings.CutSuffix(load, " pipelined")
			args := []string{"-c" + connections}
			if deep {
				args = append(args, "-s", script)
			}
			for _, s := range subjects {
				s.round(t, load, args...)
			}
		}
	}
	for _, load := range loads {
		for _, s := range subjects {
			t.Logf("%-14s %-6s %6.2f µs/request, %8.0f/s, nginx/it %.2f  rounds %.2f", load, s.name, median(s.cost[load]), median(s.rate[load]),
				median(ratios(nginx.cost[load], s.cost[load])), s.cost[load])
		}
	}
}
