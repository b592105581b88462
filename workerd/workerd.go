// Package workerd runs users' Workers on the real workerd: one process per
// version of a Worker, started when the first request comes, replaced without
// losing a request when a new version is deployed, ended when it is idle, stuck
// or too large.
//
// A process has no network and no file system of its own where the kernel allows
// it. All that it reaches are unix sockets of ours: KV, the cache, the way out.
// To each of them workerd itself adds a token that the Worker can neither read
// nor forge. This is a wall, not a vault: Workers share the kernel of the
// machine, which is no boundary between tenants who attack each other.
//
// What is running holds nothing that matters: the loss of a process costs the
// requests that are in flight in it, and what they had left to waitUntil is lost.
package workerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits and waits, for options that are zero.
const (
	DefaultHeapBytes   = 128 << 20
	DefaultMemoryBytes = 384 << 20
	DefaultCPU         = 30 * time.Second
	DefaultStart       = 10 * time.Second
	DefaultIdle        = 5 * time.Minute
	DefaultLinger      = 30 * time.Second
	DefaultDrain       = 10 * time.Minute
	DefaultStop        = 5 * time.Second
	DefaultPause       = time.Minute
	DefaultProcesses   = 100
	DefaultRequests    = 1000
)

// Options say where the runtime is and what a Worker may use.
type Options struct {
	Path string // the binary; empty: workerd in PATH
	Dir  string // a folder of our own, for sockets; kept short: a socket's path has at most 107 bytes

	// Unix sockets of the services that a Worker may reach. All requests to them
	// bear HeaderToken. Without one of them, what it serves is refused.
	KV       string // requests of KV bindings, with HeaderNamespace
	Egress   string // everything that a Worker fetches, with HeaderProto and HeaderCF
	Cache    string // the Cache API
	Services string // requests to other Workers, with HeaderService
	Events   string // what happens in Workers that are traced: arrays of workerd's events, as JSON, by POST

	Place string // of CF-Ray and request.cf.colo; empty: "LOC"

	HeapBytes   int64         // JavaScript heap of a process
	MemoryBytes int64         // resident memory of a process
	CPU         time.Duration // used by a process without any sign of progress
	Start       time.Duration // until a process must be ready
	Idle        time.Duration // without a request, until a process is ended
	Linger      time.Duration // a replaced process lives on after its last request, for waitUntil
	Drain       time.Duration // a replaced process waits at most so long for its last request
	Stop        time.Duration // from SIGTERM to SIGKILL
	Pause       time.Duration // in which a client must take something of its answer, or send something of its request
	Processes   int           // at most
	Requests    int           // in flight per process, at most

	RequireIsolation bool // refuse to start Workers where the kernel gives no namespaces

	// Output takes each line that a Worker logs, as workerd's JSON. It must not
	// block, and must not keep the line.
	Output func(name, version string, line []byte)
	Logger *slog.Logger
}

// Headers between workerd and our services.
const (
	HeaderToken      = "X-NK-Token"      // whose process this is: Runtime.Identify
	HeaderNamespace  = "X-NK-NS"         // the namespace of a KV binding
	HeaderService    = "X-NK-Service"    // the Worker that a service binding names
	HeaderEntrypoint = "X-NK-Entrypoint" // and the entrypoint; empty: the default export
	HeaderProto      = "X-NK-Proto"      // the scheme of the URL
	HeaderCF         = "X-NK-CF"         // request.cf or the cf of a fetch, as JSON
	headerOK         = "X-NK-OK"         // on every answer that the Worker made
)

// A ModuleType is how workerd loads a module.
type ModuleType string

// The types of module.
const (
	ESModule ModuleType = "esm"
	CommonJS ModuleType = "cjs"
	Text     ModuleType = "text"
	Data     ModuleType = "data"
	Wasm     ModuleType = "wasm"
	JSON     ModuleType = "json"
)

// A Module is one file of a Worker.
type Module struct {
	Name    string
	Type    ModuleType
	Content []byte
}

// A BindingKind is what a binding gives to the Worker.
type BindingKind string

// The kinds of binding. The value of a KV binding is the id of its namespace, of
// a service binding the name of the other Worker, of the version's metadata an
// object with id, tag and timestamp as JSON (empty: the Worker's Version is the
// id), of all others the content.
const (
	BindKV      BindingKind = "kv"
	BindText    BindingKind = "text"
	BindSecret  BindingKind = "secret"
	BindJSON    BindingKind = "json"
	BindData    BindingKind = "data"
	BindWasm    BindingKind = "wasm" // service worker syntax; a module imports it
	BindService BindingKind = "service"
	BindVersion BindingKind = "version"
)

// A Binding is one name in a Worker's env.
type Binding struct {
	Name       string
	Kind       BindingKind
	Value      string
	Entrypoint string // of the Worker that a service binding names; empty: its default export
}

// A Worker is one version of one Worker. It must not change once it was given.
// Names are the caller's: one that splits the requests of a Worker over two
// versions gives each a name of its own.
type Worker struct {
	Name, Version     string
	Label             string // what the log calls it; empty: its name
	Modules           []Module
	Main              string // the name of the module that begins
	ServiceWorker     bool   // Main is a script with addEventListener
	CompatibilityDate string
	Flags             []string
	Bindings          []Binding
	CPU               time.Duration // less than Options.CPU; 0: that
	Tally             *Tally        // counts what this version does; nil: the Runtime alone does
}

func (w *Worker) label() string { return cmp.Or(w.Label, w.Name) }

// Errors of a Worker that cannot answer.
var (
	ErrNotFound = errors.New("there is no such Worker")
	ErrMissing  = errors.New("the Workers runtime is not installed")
	ErrInUse    = errors.New("another process runs Workers in this folder")
	ErrClosed   = errors.New("the Workers runtime has ended")
	ErrBusy     = errors.New("too much is running")
	ErrCrashing = errors.New("the Worker crashed too often and is held back")
)

// A StartError is why workerd did not start a Worker, in its own words.
type StartError struct{ Text string }

func (e *StartError) Error() string { return e.Text }

// A Runtime starts, watches and ends processes. Its methods may be called by many
// at once.
type Runtime struct {
	opts    Options
	running sync.WaitGroup // every goroutine and process
	closing chan struct{}  // closed when Run ends

	tokens  sync.Map  // token: *process, from its start to its end
	peers   sync.Map  // process id: token, for as long
	buffers sync.Pool // of *[copyBuffer]byte
	walls   walls
	total   Tally        // of all Workers, those that were removed too
	told    atomic.Int64 // when it was last logged that something does not start, ns since 1970

	mu        sync.Mutex // guards what follows
	lock      *os.File   // of Dir; nil: not taken yet
	release   *release   // that was found last; nil: none yet
	scripts   map[string]*script
	vetted    map[string]struct{} // flags and date that need nothing experimental
	processes map[*process]struct{}
	starting  int // processes that are not in the set yet
	closed    bool
	serial    int
}

// walls are what the kernel does to keep processes apart.
type walls struct {
	shared atomic.Bool // namespaces are refused here: Workers share ours
	given  atomic.Bool // namespaces were given
}

// New returns a Runtime that has started nothing.
func New(opts Options) *Runtime {
	setDefault(&opts.HeapBytes, DefaultHeapBytes)
	setDefault(&opts.MemoryBytes, DefaultMemoryBytes)
	setDefault(&opts.CPU, DefaultCPU)
	setDefault(&opts.Start, DefaultStart)
	setDefault(&opts.Idle, DefaultIdle)
	setDefault(&opts.Linger, DefaultLinger)
	setDefault(&opts.Drain, DefaultDrain)
	setDefault(&opts.Stop, DefaultStop)
	setDefault(&opts.Pause, DefaultPause)
	setDefault(&opts.Processes, DefaultProcesses)
	setDefault(&opts.Requests, DefaultRequests)
	setDefault(&opts.Place, "LOC")
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Runtime{
		opts:      opts,
		closing:   make(chan struct{}),
		scripts:   map[string]*script{},
		vetted:    map[string]struct{}{},
		processes: map[*process]struct{}{},
	}
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Run watches what runs until ctx ends. When it returns every process has ended,
// what they had in flight is answered (within Options.Stop), and the folder is
// empty.
func (r *Runtime) Run(ctx context.Context) error {
	r.watch(ctx)
	r.mu.Lock()
	r.closed = true
	close(r.closing)
	all := r.list()
	r.mu.Unlock()
	for _, p := range all {
		r.running.Go(func() { p.end("", r.opts.Stop) })
	}
	r.running.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lock != nil {
		_ = r.lock.Close()
		r.lock = nil
	}
	return nil
}

// list returns the processes; r.mu is held.
func (r *Runtime) list() []*process {
	all := make([]*process, 0, len(r.processes))
	for p := range r.processes {
		all = append(all, p)
	}
	return all
}

// begin counts a goroutine in, unless the Runtime has ended.
func (r *Runtime) begin(f func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.running.Go(f)
	return nil
}

// Ready tells whether Workers can be started, and if not why.
func (r *Runtime) Ready() error {
	_, err := r.prepare()
	return err
}

// Isolated reports whether the kernel gave namespaces so far.
func (r *Runtime) Isolated() bool { return !r.walls.shared.Load() }

// prepare finds the binary, which may have been replaced since the last start, and
// takes the folder: another process that uses the same one is an error, what a
// killed one left in it is removed.
func (r *Runtime) prepare() (*release, error) {
	r.mu.Lock()
	known := r.release
	r.mu.Unlock()
	found, err := known.find(r.opts.Path)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if err != nil {
		if r.release != nil { // once
			r.release = nil
			r.opts.Logger.Error("the Workers runtime is gone: what runs goes on, nothing more is started", "error", err)
		}
		return nil, err
	}
	if found != known {
		r.release = found
		clear(r.vetted) // by another one
	}
	if r.lock != nil {
		return found, nil
	}
	if err := os.MkdirAll(r.opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of Workers: %w", err)
	}
	lock, err := lockDir(r.opts.Dir)
	if err != nil {
		return nil, err
	}
	stale, err := filepath.Glob(filepath.Join(r.opts.Dir, "gen-*"))
	for _, dir := range stale {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("clean the folder of Workers: %w", err)
	}
	r.lock = lock
	return found, nil
}

// script returns the script of a name; created is nil if it is to be found only.
func (r *Runtime) script(name string, create bool) *script {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.scripts[name]
	if s == nil && create {
		s = &script{rt: r, name: name, deploying: make(chan struct{}, 1)}
		r.scripts[name] = s
	}
	return s
}

// Load makes a version the one that answers from now on, without starting it:
// the next request does. What runs of another version ends once it is idle.
func (r *Runtime) Load(w Worker) error {
	if err := validate(&w, &r.opts); err != nil {
		return err
	}
	r.script(w.Name, true).replace(&w, nil)
	return nil
}

// Deploy starts a version and makes it the one that answers. Requests that are in
// flight in the version before it end there. If it does not start, the version
// before it goes on.
func (r *Runtime) Deploy(ctx context.Context, w Worker) error {
	s := r.script(w.Name, true)
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	more := s.wanted()
	more.entrypoints = "" // of another version
	p, err := r.launch(ctx.Done(), &w, more)
	if err != nil {
		return err
	}
	if !s.replace(&w, p) {
		p.end("", r.opts.Stop)
		return ErrNotFound
	}
	return nil
}

// Remove forgets a Worker. Requests that are in flight end.
func (r *Runtime) Remove(name string) {
	r.mu.Lock()
	s := r.scripts[name]
	delete(r.scripts, name)
	r.mu.Unlock()
	if s != nil {
		s.replace(nil, nil)
	}
}

// A Caller is whose process bears a token.
type Caller struct{ Name, Version string }

// Identify tells whose process sent a request with this token, and refuses a
// namespace (if one is given) that is not bound there.
func (r *Runtime) Identify(token, namespace string) (Caller, bool) {
	found, ok := r.tokens.Load(token)
	if !ok {
		return Caller{}, false
	}
	w := found.(*process).worker
	bound := namespace == "" || slices.ContainsFunc(w.Bindings, func(b Binding) bool {
		return b.Kind == BindKV && b.Value == namespace
	})
	return Caller{w.Name, w.Version}, bound
}

// A Status is what runs of one Worker.
type Status struct {
	Name, Version string
	PID           int // 0: nothing runs
	InFlight      int
	MemoryBytes   int64 // resident; 0: nothing runs, or the system does not tell
	Counts              // since the Worker was loaded
}

// Statuses returns what is known of each Worker, by name.
func (r *Runtime) Statuses() []Status {
	r.mu.Lock()
	scripts := make([]*script, 0, len(r.scripts))
	for _, s := range r.scripts {
		scripts = append(scripts, s)
	}
	r.mu.Unlock()
	var all []Status
	for _, s := range scripts {
		if status, ok := s.status(); ok {
			all = append(all, status)
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Processes counts what runs, starts or lingers.
func (r *Runtime) Processes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.processes) + r.starting
}
