// The rules of the house, as tests. Each rule is a small function from the
// sources to complaints; house_control_test.go shows that each one complains.
package nearkey_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/nearkey/nearkey"
	suite  = "kv/kvtest" // test code that is no _test file
)

// A dependency is a third-party module, the one folder that imports it, and why
// it is worth having. A new line here is a decision: write it down in
// doc/decisions as well.
type dependency struct{ module, importer, reason string }

var dependencies = []dependency{
	{"github.com/cockroachdb/pebble/v2", "store/disk", "the embedded store: group commit, crash-tested, pure Go"},
	{"github.com/jackc/pgx/v5", "store/postgres", "PostgreSQL's protocol: pools, pipelines, notices; the driver that CockroachDB and YugabyteDB test with"},
	{"github.com/aws/aws-sdk-go-v2", "store/s3", "the field's standard client of S3, and the best kept"},
	{"github.com/aws/smithy-go", "store/s3", "the client's errors and its log"},
	{"modernc.org/sqlite", "catalog", "the control plane's database in one file, without cgo"},
	{"github.com/maypok86/otter/v2", "edge", "the near copies of a tier: a cache bounded by bytes that keeps what is read most"},
	{"github.com/prometheus/client_golang", "internal/observe", "the metrics format that everyone scrapes"},
	{"github.com/spf13/cobra", "cmd/nearkey", "commands, help and shell completion"},
	{"github.com/spf13/pflag", "cmd/nearkey", "cobra's flags, by their own name"},
	{"github.com/pelletier/go-toml/v2", "cmd/nearkey", "a strict reader of the configuration file"},
	{"github.com/schollz/progressbar/v3", "cmd/nearkey", "progress of export and import on a terminal"},
	{"golang.org/x/term", "cmd/nearkey", "is this a terminal, and how wide"},
	{"golang.org/x/sync", "cmd/nearkey", "one group for the server and its long work: the first error ends all"},
	{"github.com/Shopify/toxiproxy/v2", "test/chaos", "lines between processes that are slow, reset, or black holes"},
	{"github.com/rs/zerolog", "test/chaos", "toxiproxy's log, to silence it"},
	{"github.com/rogpeppe/go-internal", "test/script", "command line scenarios as text that a newcomer can read"},
	{"github.com/chromedp/chromedp", "examples", "a browser that uses an example's page as a person does, without a driver beside it"},
	{"github.com/cloudflare/cloudflare-go", "test/compat", "a real client, the old API, that must accept our answers"},
	{"github.com/cloudflare/cloudflare-go/v6", "test/compat", "a real client that must accept our answers"},
}

// The levels of the tree. Imports point down, packages of one level never import
// each other, and internal may be imported by any package but those of level 0.
var levels = []struct {
	dir   string
	level int
}{
	{"kv", 0},
	{"store", 1}, {"wire", 1}, {"feed", 1}, {"catalog", 1},
	{"edge", 2}, {"gateway", 2}, {"proxy", 2}, {"backup", 2},
	{"api", 3}, {"workerd", 3}, {"dashboard", 3}, {"client", 3},
	{"cmd", 4}, {"bench", 4}, {"examples", 4}, {"test", 4},
}

const (
	roleLevel = 2  // edge, gateway and proxy see only kv and feed
	internal  = -1 // the level of internal/...
)

// arrows are the exceptions to the levels.
var arrows = map[string]string{
	"wire -> feed":            "the wire carries the feed as well as the store",
	"workerd/host -> workerd": "it tells the runtime what to run",
}

// Exceptions by rule. Each has its reason; a function or file that is no longer
// an exception is complained about, so that the lists only hold what they must.
var (
	longFunctions = map[string]string{}
	realSleeps    = map[string]string{
		"gateway/gateway_test.go":              "every world of a gateway runs in a bubble",
		"internal/guard/guard_test.go":         "every guard that runs does so in a bubble",
		"edge/tier_test.go":                    "the cases of a table sleep in the bubble that runs them",
		"proxy/split_sweep_test.go":            "what runs beside a sweep does so in a bubble",
		"test/sim/gateway_check_test.go":       "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_client_test.go":      "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_consistency_test.go": "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_plane_test.go":       "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_site_test.go":        "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_test.go":             "the whole simulation is run in a bubble of simulated time",
		"test/sim/gateway_world_test.go":       "the whole simulation is run in a bubble of simulated time",
		"test/sim/sim_test.go":                 "the whole simulation is run in a bubble of simulated time",
		"test/sim/world_test.go":               "the whole simulation is run in a bubble of simulated time",
	}
)

const (
	maxFunctionLines    = 70
	maxInterfaceMethods = 3
)

// bannedNames say nothing about what a thing is for.
var bannedNames = []string{"util", "utils", "common", "manager", "helper", "helpers", "base", "impl", "misc"}

// source is one Go file of the repository.
type source struct {
	path string // from the root, with slashes
	text string
	fset *token.FileSet
	file *ast.File
}

func (s source) dir() string { return path.Dir(s.path) }
func (s source) test() bool  { return strings.HasSuffix(s.path, "_test.go") }
func (s source) main() bool  { return s.file.Name.Name == "main" }
func (s source) line(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

// imports returns the import paths of the file.
func (s source) imports() []string {
	var paths []string
	for _, spec := range s.file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic(err)
		}
		paths = append(paths, p)
	}
	return paths
}

// calls reports whether n is a call of the function name of an imported package.
func calls(n ast.Node, pkg, name string) bool {
	call, ok := n.(*ast.CallExpr)
	return ok && isSelector(call.Fun, pkg, name)
}

func parseSource(path, text string) (source, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
	return source{path, text, fset, file}, err
}

// files lists what is or will be part of the repository.
func files(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err == nil {
		return slices.DeleteFunc(strings.Split(string(out), "\x00"), func(f string) bool {
			info, err := os.Stat(f)
			return err != nil || info.IsDir()
		})
	}
	t.Logf("no git checkout (%v): every file counts", err)
	var found []string
	err = filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if d.IsDir() && slices.Contains([]string{".git", "node_modules", ".cache", "bin", "nearkey-data"}, d.Name()) {
			return filepath.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			found = append(found, filepath.ToSlash(p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, name := range files(t) {
		if path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseSource(name, string(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) < 10 {
		t.Fatalf("found %d Go files: this is not the repository", len(all))
	}
	return all
}

// rules are the checks of Go sources by name.
var rules = map[string]func([]source) []string{
	"imports point down":               importDirections,
	"dependencies have one importer":   dependencyImporters,
	"package comments":                 packageComments,
	"no init":                          initFunctions,
	"contexts come from the caller":    rootContexts,
	"tests do not sleep":               sleepingTests,
	"functions fit a screen":           functionLengths,
	"interfaces are small":             interfaceWidths,
	"production does not import tests": testingImports,
	"names mean something":             packageNames,
	"every store runs the suite":       storeSuites,
	"mutexes name what they guard":     mutexComments,
	"contexts are not stored":          storedContexts,
	"constructors start nothing":       startingConstructors,
	"no else after return":             elseAfterReturn,
	"errors say what was done":         errorTexts,
}

// The list of dependencies is what it says: each is imported.
func TestHouseDependencies(t *testing.T) {
	imported := map[dependency]bool{}
	for _, s := range sources(t) {
		for _, p := range s.imports() {
			d, _ := dependencyOf(p)
			imported[d] = true
		}
	}
	for _, d := range dependencies {
		if !imported[d] {
			t.Errorf("nobody imports %s: take it off the list", d.module)
		}
		if d.reason == "" {
			t.Errorf("%s: no reason", d.module)
		}
	}
}

func TestHouse(t *testing.T) {
	all := sources(t)
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, complaint := range rule(all) {
				t.Error(complaint)
			}
		})
	}
}

// ours returns the folder of an import path of this module.
func ours(importPath string) (dir string, ok bool) {
	return strings.CutPrefix(importPath, module+"/")
}

func within(dir, tree string) bool { return dir == tree || strings.HasPrefix(dir, tree+"/") }

func levelOf(dir string) (level int, ok bool) {
	if within(dir, "internal") {
		return internal, true
	}
	for _, l := range levels {
		if within(dir, l.dir) {
			return l.level, true
		}
	}
	return 0, false
}

// importDirections: DESIGN.md's levels. A test may also use its own level, the
// memory store (break it, do not mock it) and the conformance suite.
func importDirections(all []source) (complaints []string) {
	for _, s := range all {
		from, ok := levelOf(s.dir())
		if !ok {
			if s.dir() != "." {
				complaints = append(complaints, s.path+": its folder has no level: give it one in house_test.go and a line in ARCHITECTURE.md")
			}
			continue
		}
		for _, imported := range s.imports() {
			if from == 0 && !s.test() && thirdParty(imported) {
				complaints = append(complaints, fmt.Sprintf("%s: kv imports only the standard library, not %s", s.path, imported))
			}
			dir, ok := ours(imported)
			if !ok || s.test() && (dir == "store/memory" || dir == suite) {
				continue
			}
			if why := badArrow(s, from, dir); why != "" {
				complaints = append(complaints, fmt.Sprintf("%s: imports %s: %s", s.path, dir, why))
			}
		}
	}
	return complaints
}

// badArrow says what is wrong with an import of dir by s, or nothing.
func badArrow(s source, from int, dir string) string {
	to, ok := levelOf(dir)
	_, excepted := arrows[s.dir()+" -> "+dir]
	switch {
	case !ok:
		return "it has no level"
	case excepted || s.dir() == dir || from == 0 && within(dir, "kv"):
		return ""
	case to == internal && from == 0:
		return "kv stands alone"
	case from == internal && to > 0:
		return "internal packages have no meaning of their own: they see only kv"
	case to == internal || from == internal || to < from && from != roleLevel:
		return ""
	case s.test() && to <= from:
		return ""
	case to < from && (within(dir, "kv") || dir == "feed"):
		return ""
	case to < from:
		return "a role sees only kv and feed"
	case to == from:
		return "packages of one level do not import each other"
	}
	return "imports point down"
}

// thirdParty reports whether an import path is neither the standard library's
// nor ours: only hosts have a dot in their first element.
func thirdParty(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	_, our := ours(importPath)
	return strings.Contains(first, ".") && !our && importPath != module
}

// dependencyOf returns the listed module that an import path belongs to: the one
// with the longest path.
func dependencyOf(importPath string) (found dependency, ok bool) {
	for _, d := range dependencies {
		if within(importPath, d.module) && len(d.module) > len(found.module) {
			found, ok = d, true
		}
	}
	return found, ok
}

func dependencyImporters(all []source) (complaints []string) {
	for _, s := range all {
		for _, imported := range s.imports() {
			if !thirdParty(imported) {
				continue
			}
			d, ok := dependencyOf(imported)
			switch {
			case !ok:
				complaints = append(complaints, fmt.Sprintf("%s: %s is not in the list of dependencies: is it worth its place?", s.path, imported))
			case s.dir() != d.importer:
				complaints = append(complaints, fmt.Sprintf("%s: only %s imports %s", s.path, d.importer, d.module))
			}
		}
	}
	return complaints
}

// packageComments: the first sentence says what the package is for, the last
// what it may lose.
func packageComments(all []source) (complaints []string) {
	type pkg struct{ name, doc string }
	packages := map[string]pkg{}
	for _, s := range all {
		if s.test() || s.dir() == "." {
			continue
		}
		p := packages[s.dir()]
		packages[s.dir()] = pkg{s.file.Name.Name, p.doc + s.file.Doc.Text()}
	}
	for dir, p := range packages {
		first := "Package " + p.name + " "
		if p.name == "main" {
			first = "Command " + path.Base(dir) + " "
		}
		if !strings.HasPrefix(p.doc, first) {
			complaints = append(complaints, fmt.Sprintf("%s: want one package comment that begins with %q and says what it is for", dir, first))
		} else if !regexp.MustCompile(`\b(lose|loses|losing|lost|loss)\b`).MatchString(lastSentence(p.doc)) {
			complaints = append(complaints, fmt.Sprintf("%s: the last sentence of the package comment must say what it may lose", dir))
		}
	}
	slices.Sort(complaints)
	return complaints
}

func lastSentence(doc string) string {
	text := strings.Join(strings.Fields(doc), " ")
	text = strings.TrimRight(text, ". ")
	return text[strings.LastIndex(text, ". ")+1:]
}

func initFunctions(all []source) (complaints []string) {
	for _, s := range all {
		for _, decl := range s.file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				complaints = append(complaints, s.line(f)+": init runs before anyone asked for it: make it a constructor")
			}
		}
	}
	return complaints
}

func rootContexts(all []source) (complaints []string) {
	for _, s := range all {
		if s.test() || s.main() || s.dir() == suite {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if calls(n, "context", "Background") || calls(n, "context", "TODO") {
				complaints = append(complaints, s.line(n)+": the context comes from the caller")
			}
			return true
		})
	}
	return complaints
}

// sleepingTests: time is synctest's. What runs in real time waits for a
// condition: a short pause within the loop that looks is no sleep.
func sleepingTests(all []source) (complaints []string) {
	for _, s := range all {
		if !s.test() || realSleeps[s.path] != "" {
			continue
		}
		var walk func(n ast.Node, allowed bool)
		walk = func(n ast.Node, bubble bool) {
			ast.Inspect(n, func(child ast.Node) bool {
				if child == n || child == nil {
					return true
				}
				switch c := child.(type) {
				case *ast.ForStmt:
					walk(c, bubble || c.Post == nil)
					return false
				case *ast.CallExpr:
					if calls(c, "synctest", "Test") {
						return false
					}
					if calls(c, "time", "Sleep") && !(bubble && shortPause(c.Args[0])) {
						complaints = append(complaints, s.line(c)+": wait for a condition, or use testing/synctest")
					}
				}
				return true
			})
		}
		walk(s.file, false)
	}
	return complaints
}

// shortPause reports whether a duration is written as at most 100 ms.
func shortPause(e ast.Expr) bool {
	if product, ok := e.(*ast.BinaryExpr); ok && product.Op == token.MUL {
		lit, isLit := product.X.(*ast.BasicLit)
		if !isLit {
			return false
		}
		n, err := strconv.Atoi(lit.Value)
		return err == nil && n <= 100 && shortPause(product.Y)
	}
	sel, ok := e.(*ast.SelectorExpr)
	return ok && (sel.Sel.Name == "Millisecond" || sel.Sel.Name == "Microsecond")
}

// mutexComments: a mutex in a struct says what it guards.
func mutexComments(all []source) (complaints []string) {
	for _, s := range all {
		ast.Inspect(s.file, func(n ast.Node) bool {
			fields, ok := n.(*ast.StructType)
			if !ok || s.test() {
				return true
			}
			for _, f := range fields.Fields.List {
				mutex := isSelector(f.Type, "sync", "Mutex") || isSelector(f.Type, "sync", "RWMutex")
				if mutex && !strings.Contains(f.Doc.Text()+f.Comment.Text(), "guard") {
					complaints = append(complaints, s.line(f)+": say what the mutex guards")
				}
			}
			return true
		})
	}
	return complaints
}

// storedContexts: a context belongs to a call, not to a thing.
func storedContexts(all []source) (complaints []string) {
	for _, s := range all {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if fields, ok := n.(*ast.StructType); ok && !s.test() {
				for _, f := range fields.Fields.List {
					if isSelector(f.Type, "context", "Context") {
						complaints = append(complaints, s.line(f)+": pass the context, do not store it")
					}
				}
			}
			return true
		})
	}
	return complaints
}

// startingConstructors: long work is Run(ctx), and whoever calls it waits for it.
func startingConstructors(all []source) (complaints []string) {
	for _, s := range all {
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil || s.test() || !strings.HasPrefix(f.Name.Name, "New") {
				continue
			}
			for _, statement := range f.Body.List {
				if _, ok := statement.(*ast.GoStmt); ok {
					complaints = append(complaints, s.line(statement)+": "+f.Name.Name+" starts a goroutine: make it Run(ctx)")
				}
			}
		}
	}
	return complaints
}

// elseAfterReturn: the error is handled and left behind; the rest is not indented.
func elseAfterReturn(all []source) (complaints []string) {
	for _, s := range all {
		ast.Inspect(s.file, func(n ast.Node) bool {
			branch, ok := n.(*ast.IfStmt)
			if !ok || branch.Else == nil || len(branch.Body.List) == 0 {
				return true
			}
			if _, ok := branch.Else.(*ast.BlockStmt); !ok {
				return true // else if: a switch in other words
			}
			if _, ok := branch.Body.List[len(branch.Body.List)-1].(*ast.ReturnStmt); ok && branch.Init == nil {
				complaints = append(complaints, s.line(branch.Else)+": no else after return")
			}
			return true
		})
	}
	return complaints
}

// errorTexts: an error says what was being done; that it failed is known.
func errorTexts(all []source) (complaints []string) {
	for _, s := range all {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if !calls(n, "fmt", "Errorf") && !calls(n, "errors", "New") {
				return true
			}
			text, ok := n.(*ast.CallExpr).Args[0].(*ast.BasicLit)
			if ok && regexp.MustCompile(`^.(?i:failed to|error |unable to|could not)`).MatchString(text.Value) {
				complaints = append(complaints, s.line(n)+": "+text.Value+": say what was being done")
			}
			return true
		})
	}
	return complaints
}

// isSelector reports whether an expression is pkg.name.
func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	ident, ok := sel.X.(*ast.Ident)
	return ok && ident.Name == pkg
}

func functionLengths(all []source) (complaints []string) {
	excused := map[string]bool{}
	for _, s := range all {
		if s.test() {
			continue
		}
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			name := s.dir() + "." + f.Name.Name
			if lines <= maxFunctionLines {
				continue
			}
			if longFunctions[name] == "" {
				complaints = append(complaints, fmt.Sprintf("%s: %s has %d lines, at most %d fit a screen", s.line(f), f.Name.Name, lines, maxFunctionLines))
			}
			excused[name] = true
		}
	}
	for name := range longFunctions {
		if !excused[name] {
			complaints = append(complaints, name+" is no long function: take it off the list")
		}
	}
	return complaints
}

func interfaceWidths(all []source) (complaints []string) {
	for _, s := range all {
		ast.Inspect(s.file, func(n ast.Node) bool {
			i, ok := n.(*ast.InterfaceType)
			if !ok {
				return true
			}
			methods := 0
			for _, field := range i.Methods.List {
				methods += len(field.Names)
			}
			if methods > maxInterfaceMethods {
				complaints = append(complaints, fmt.Sprintf("%s: an interface of %d methods, at most %d", s.line(i), methods, maxInterfaceMethods))
			}
			return true
		})
	}
	return complaints
}

func testingImports(all []source) (complaints []string) {
	for _, s := range all {
		if s.test() || s.dir() == suite {
			continue
		}
		for _, imported := range s.imports() {
			if imported == "testing" || strings.HasPrefix(imported, "testing/") {
				complaints = append(complaints, s.path+": code that ships does not import "+imported)
			}
		}
	}
	return complaints
}

// packageNames: no package or type is named for nothing, and none shadows a
// package of the standard library.
func packageNames(all []source) (complaints []string) {
	seen := map[string]bool{}
	for _, s := range all {
		name := strings.TrimSuffix(s.file.Name.Name, "_test")
		if !seen[s.dir()] && s.dir() != "." && name != "main" {
			seen[s.dir()] = true
			if slices.Contains(bannedNames, name) || slices.Contains(bannedNames, path.Base(s.dir())) {
				complaints = append(complaints, s.dir()+": the name says nothing about what it is for")
			}
			if standardNames[name] {
				complaints = append(complaints, s.dir()+": package "+name+" shadows the standard library's")
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if ok && regexp.MustCompile(`(?i)(util|utils|manager|helper|impl)$`).MatchString(spec.Name.Name) {
				complaints = append(complaints, s.line(spec)+": "+spec.Name.Name+": name what it is")
			}
			return true
		})
	}
	return complaints
}

// standardNames are the package names of the standard library that a reader
// would take ours for.
var standardNames = func() map[string]bool {
	names := map[string]bool{}
	for _, name := range strings.Fields(`archive bufio bytes cmp context crypto database debug embed encoding errors
		expvar flag fmt fs gob hash heap html http image io ioutil iter json jsonrpc list log maps math mime multipart net
		netip os parser path plugin pprof quick rand reflect regexp ring rpc runtime scanner sha256 slices slog sort sql
		strconv strings structs sync syscall template tabwriter testing text time tls trace unicode unique unsafe url user
		utf8 weak x509 xml zip zlib`) {
		names[name] = true
	}
	return names
}()

// storeSuites: what implements kv.Store says so, and its tests run kvtest.Run on
// it. A store is known by its methods Get, Put and List, of which Put takes a
// kv.Record.
func storeSuites(all []source) (complaints []string) {
	guards, suites, stores := map[string]bool{}, map[string]bool{}, map[string]string{}
	for _, s := range all {
		methods := map[string][]string{}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if calls(n, "kvtest", "Run") || s.dir() == suite && callsHere(n, "Run") {
				suites[s.dir()] = suites[s.dir()] || s.test()
			}
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Names) == 1 && spec.Names[0].Name == "_" && isSelector(spec.Type, "kv", "Store") {
				guards[s.dir()] = guards[s.dir()] || !s.test()
			}
			if f, ok := n.(*ast.FuncDecl); ok && f.Recv != nil && !s.test() && (f.Name.Name != "Put" || takesRecord(f)) {
				receiver := strings.TrimLeft(s.text[f.Recv.List[0].Type.Pos()-1:f.Recv.List[0].Type.End()-1], "*")
				methods[receiver] = append(methods[receiver], f.Name.Name)
			}
			return true
		})
		for receiver, names := range methods {
			if slices.Contains(names, "Get") && slices.Contains(names, "Put") && slices.Contains(names, "List") {
				stores[s.dir()] = receiver
			}
		}
	}
	for dir, receiver := range stores {
		if !guards[dir] {
			complaints = append(complaints, fmt.Sprintf("%s: write var _ kv.Store = (*%s)(nil)", dir, receiver))
		}
	}
	for dir := range guards {
		if guards[dir] && !suites[dir] {
			complaints = append(complaints, dir+": a kv.Store whose tests do not call kvtest.Run")
		}
	}
	slices.Sort(complaints)
	return complaints
}

func callsHere(n ast.Node, name string) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	ident, ok := call.Fun.(*ast.Ident)
	return ok && ident.Name == name
}

func takesRecord(f *ast.FuncDecl) bool {
	for _, field := range f.Type.Params.List {
		if sel, ok := field.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Record" {
			return true
		}
	}
	return false
}

// bannedText is what a tracked file must not hold: folders of someone's machine,
// and hosts of package registries (a lock file pins by hash, the client knows
// where its registry is). Written in halves, so that this file passes.
var bannedText = regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(work|root|home)/[a-z]` +
	`|registry\.` + `npmjs|proxy\.` + `golang\.org|sum\.` + `golang\.org|(deb|security)\.` + `debian\.org|files\.` + `pythonhosted|crates\.` + `io/`)

func badText(name, text string) (complaints []string) {
	for i, line := range strings.Split(text, "\n") {
		if found := bannedText.FindString(line); found != "" {
			complaints = append(complaints, fmt.Sprintf("%s:%d: %q belongs to one machine or registry", name, i+1, strings.TrimSpace(found)))
		}
	}
	return complaints
}

func TestHouseText(t *testing.T) {
	for _, name := range files(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, complaint := range badText(name, string(text)) {
			t.Error(complaint)
		}
	}
}

// A change that a user sees has a file of its own, which begins with its kind.
func TestHouseChangelog(t *testing.T) {
	kind := regexp.MustCompile(`^(Security|Change|Enhancement|Bugfix): .+\n\n\S`)
	names, err := filepath.Glob("changelog/*/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("no changes under changelog (%v)", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !kind.Match(text) {
			t.Errorf("%s: does not follow changelog/TEMPLATE", name)
		}
	}
}
