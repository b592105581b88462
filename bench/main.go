// Command bench measures nearkey through its HTTP API beside nginx on the same
// machine, and its tiers and its feed in this process, and prints the table that
// README.md explains.
//
// It starts the real binary and nginx on loopback with data of their own in a
// temporary folder, runs them in turns, and reports the CPU that each operation
// cost beside its rate. A low figure is a figure; only what broke is an error.
//
// It keeps nothing, and to lose it in the middle of a run costs that run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are what a person may choose.
type options struct {
	nearkey, nginx string        // the binaries; nginx empty: left out
	parts          []string      // which parts to run
	full           bool          // the sizes of the full table
	rounds         int           // of each measurement
	slice          time.Duration // of each round
	memoryMiB      int           // the bound that nearkey is given
	first          bool          // latencies are measured before all else that the machine does
	workerd        string        // the runtime of Workers
	bundled        string        // a newer one with a KV of its own; empty: left out
	miniflare      string        // its folder; empty: left out
	profile        string        // the file of this process's CPU profile; empty: none
}

// bench is one run.
type bench struct {
	options
	dir      string
	out      io.Writer
	scale    scale // of the storage parts
	workers  workersScale
	verdicts []verdict
}

// part is one block of the table.
type part struct {
	name, about string
	run         func(*bench, context.Context) error
}

var parts = []part{
	{"get", "hot and cold get of 288 bytes, beside nginx serving the same files", (*bench).gets},
	{"hot", "hot get of 288 bytes by the tier beside nginx: cost at 32 and 128 connections, latency at half of what it can", (*bench).hots},
	{"rate", "gets of one key in a second: pipelined, and over 128 connections", (*bench).rates},
	{"put", "synced put of 288 bytes at 1 and 64 clients", (*bench).puts},
	{"list", "import, list of 1,000 keys in namespaces of 10 k, 100 k and 1 M, bulk get of 100", (*bench).lists},
	{"size", "disk, memory and time to open at 1 M keys (with -full also 5 M)", (*bench).sizes},
	{"fleet", "CPU of a read through an edge, by what answers it: the edge, its regional tier, the centre", (*bench).fleets},
	{"feed", "from an acknowledged write to what 100 tiers answer, at 1,000 changes/s", (*bench).tells},
	{"day", "far reads of a tier in 24 simulated hours, with the feed and without", (*bench).days},
	{"near", "memory of a copy, and pauses of the garbage collector, at 1 M copies (with -full 10 M)", (*bench).nears},
	{"read", "1,000 point reads a second through gateway and proxies, with both providers up and with one frozen", (*bench).pointReads},
	{"upsert", "writes of 64 callers through store, proxy and gateway beside plain SQL", (*bench).upserts},
	{"second", "what the second provider costs a get and a put", (*bench).second},
	{"bulk", "bulk load, bytes per row, crawl, and 100,000 keys reconciled (200,000 pairs, with -full 1 M)", (*bench).bulks},
	{"workers", "a Worker that says hello and Workers that get from KV, beside Miniflare and beside workerd's own KV", (*bench).workerRates},
	{"deploys", "from an upload to the first answer, Workers that nobody asks for, and redeploys under load", (*bench).deploys},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	opts, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nearkey-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // a temporary folder: what stays is the system's to clean
	b := &bench{options: opts, dir: dir, out: out, scale: quickScale, workers: usualWorkers}
	if opts.full {
		b.scale = fullScale
	}
	b.printf("nearkey bench: %d cores, %s, %d rounds of %s, load average %s\n", runtime.NumCPU(), runtime.Version(), opts.rounds, opts.slice, loadAverage())
	if opts.profile != "" {
		file, err := os.Create(opts.profile)
		if err != nil {
			return err
		}
		defer file.Close() // a profile that was cut says so when it is read
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	began := time.Now()
	for _, p := range parts {
		if !slices.Contains(opts.parts, p.name) {
			continue
		}
		b.printf("\n== %s: %s\n", p.name, p.about)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
	}
	b.printVerdicts()
	b.printf("\nmeasured in %s\n", time.Since(began).Round(time.Second))
	return nil
}

func parse(args []string) (options, error) {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	var opts options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&opts.nearkey, "nearkey", filepath.Join("bin", "nearkey"), "the nearkey binary")
	flags.StringVar(&opts.nginx, "nginx", "nginx", "the nginx binary; empty: no comparison")
	chosen := flags.String("parts", strings.Join(names, ","), "the parts to run")
	flags.BoolVar(&opts.full, "full", false, "also 5 million keys, 10 million copies, a busier day and half a minute of news: many minutes more")
	flags.IntVar(&opts.rounds, "rounds", 5, "rounds of each measurement; the median counts")
	flags.DurationVar(&opts.slice, "slice", 2*time.Second, "length of a round")
	flags.BoolVar(&opts.first, "first", true, "measure the latency of point reads before all else that the machine does, and Workers before most of it, where that is allowed")
	native := filepath.Join("node_modules", "@cloudflare", "workerd-"+runtime.GOOS+"-"+map[string]string{"amd64": "64", "arm64": "arm64"}[runtime.GOARCH], "bin", "workerd")
	flags.StringVar(&opts.workerd, "workerd", filepath.Join("test", "workerd", native), "the binary of workerd, the runtime of Workers")
	flags.StringVar(&opts.bundled, "bundled", filepath.Join("bench", "peers", native), "the binary of a workerd with a KV of its own; empty: no comparison")
	flags.StringVar(&opts.miniflare, "miniflare", filepath.Join("test", "compat", "node_modules", "miniflare"), "the folder of Miniflare; empty: no comparison")
	flags.StringVar(&opts.profile, "cpuprofile", "", "the file for a CPU profile of this process")
	flags.IntVar(&opts.memoryMiB, "memory", 512, "the memory that nearkey may have, MiB")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	opts.parts = strings.Split(*chosen, ",")
	for _, name := range opts.parts {
		if !slices.Contains(names, name) {
			return options{}, fmt.Errorf("no part %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	if opts.rounds < 1 || opts.slice <= 0 || flags.NArg() > 0 {
		return options{}, fmt.Errorf("want at least one round, a slice longer than nothing, and no arguments")
	}
	if _, err := os.Stat(opts.nearkey); err != nil {
		return options{}, fmt.Errorf("the nearkey binary: %w (make build)", err)
	}
	return opts, nil
}

// printf writes to the table; a reader that went away is no reason to stop.
func (b *bench) printf(format string, args ...any) { fmt.Fprintf(b.out, format, args...) }
