package workerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limits of a Worker; sizes are the control plane's to refuse, with its own words.
const (
	maxModules  = 1000
	maxBindings = 1000
)

// validate refuses what would make no sense of a configuration; all else is said
// by workerd itself.
func validate(w *Worker, opts *Options) error {
	switch {
	case w.Name == "":
		return errors.New("a Worker has no name")
	case len(w.Modules) == 0 || len(w.Modules) > maxModules:
		return fmt.Errorf("a Worker has 1 to %d modules, not %d", maxModules, len(w.Modules))
	case len(w.Bindings) > maxBindings:
		return fmt.Errorf("a Worker has at most %d bindings, not %d", maxBindings, len(w.Bindings))
	case w.ServiceWorker && len(w.Modules) > 1:
		return errors.New("a service worker is one script")
	}
	if err := dated(w.CompatibilityDate, time.Time{}); err != nil {
		return err
	}
	main := false
	for _, m := range w.Modules {
		main = main || m.Name == w.Main
		if moduleFields[m.Type] == "" {
			return fmt.Errorf("module %q: type %q is not supported", m.Name, m.Type)
		}
	}
	if !main {
		return &StartError{Text: fmt.Sprintf("No such module %q.", w.Main)}
	}
	for _, b := range w.Bindings {
		switch {
		case bindingFields[b.Kind] == "":
			return fmt.Errorf("binding %q: kind %q is not supported", b.Name, b.Kind)
		case b.Entrypoint != "" && (b.Kind != BindService || !entrypointName(b.Entrypoint)):
			return fmt.Errorf("binding %q: there is no entrypoint %q", b.Name, b.Entrypoint)
		case b.Kind == BindKV && opts.KV == "", b.Kind == BindService && opts.Services == "":
			return fmt.Errorf("binding %q: nothing here serves kind %q", b.Name, b.Kind)
		}
	}
	return nil
}

var moduleFields = map[ModuleType]string{
	ESModule: "esModule", CommonJS: "commonJsModule", Text: "text", Data: "data", Wasm: "wasm", JSON: "json",
}

var bindingFields = map[BindingKind]string{
	BindKV: "kvNamespace", BindText: "text", BindSecret: "text", BindJSON: "json", BindData: "data", BindWasm: "wasmModule", BindService: "service", BindVersion: "json",
}

// files are what workerd reads at its start, by name.
type files map[string][]byte

const configFile = "c.capnp"

// extras are what a process has beside the Worker, each only when it is needed.
type extras struct {
	report    bool // a copy of the Worker that tells which handlers there are
	scheduled bool // a Worker of ours that calls the scheduled handler
	trace     bool // a Worker of ours that is told what happens

	entrypoints string // that are entered by name, each followed by a newline
}

// named returns the entrypoints.
func (e extras) named() []string {
	return strings.FieldsFunc(e.entrypoints, func(r rune) bool { return r == '\n' })
}

// sockets are the names of the sockets that a process listens on.
func (e extras) sockets() []string {
	names := []string{"http"}
	if e.report || e.scheduled {
		names = append(names, "ctl")
	}
	for i := range e.named() {
		names = append(names, entrySocket(i))
	}
	return names
}

func entrySocket(i int) string { return "e" + strconv.Itoa(i) }

// A configuration is what workerd is told, while it is being written.
type configuration struct {
	worker   *Worker
	token    string
	opts     *Options
	files    files
	services strings.Builder
}

// external adds a service of ours on a unix socket.
func (c *configuration) external(name, socket string, more ...[2]string) {
	fmt.Fprintf(&c.services, "    (name = %s, external = (address = %s, http = (cfBlobHeader = %s, forwardedProtoHeader = %s, injectRequestHeaders = [",
		quote(name), quote("unix:"+socket), quote(HeaderCF), quote(HeaderProto))
	for i, h := range append([][2]string{{HeaderToken, c.token}}, more...) {
		fmt.Fprintf(&c.services, "%s(name = %s, value = %s)", comma(i), quote(h[0]), quote(h[1]))
	}
	c.services.WriteString("]))),\n")
}

// bindings adds the services of the bindings and returns them.
func (c *configuration) bindings() string {
	all := &strings.Builder{}
	for i, b := range c.worker.Bindings {
		value, name := quote(b.Value), "b"+strconv.Itoa(i)
		switch b.Kind {
		case BindKV:
			c.external(name, c.opts.KV, [2]string{HeaderNamespace, b.Value})
			value = quote(name)
		case BindService:
			c.external(name, c.opts.Services, [2]string{HeaderService, b.Value}, [2]string{HeaderEntrypoint, b.Entrypoint})
			value = quote(name)
		case BindData, BindWasm:
			c.files[name] = []byte(b.Value)
			value = "embed " + quote(name)
		case BindVersion:
			value = quote(versionMetadata(c.worker, b.Value))
		}
		fmt.Fprintf(all, "    (name = %s, %s = %s),\n", quote(b.Name), bindingFields[b.Kind], value)
	}
	return all.String()
}

// versionMetadata is what a Worker may know of its version: what is given, and its
// id.
func versionMetadata(w *Worker, given string) string {
	fields := map[string]string{"id": w.Version, "tag": "", "timestamp": ""}
	if given != "" && json.Unmarshal([]byte(given), &fields) != nil {
		return given
	}
	text, _ := json.Marshal(fields)
	return string(text)
}

// configure returns workerd's configuration of one process. Whatever comes from a
// user is a quoted string or a file of its own. The network that workerd has by
// default would read the system's certificates, which a process does not see; one
// that allows nothing needs none.
func configure(w *Worker, token string, more extras, opts *Options, newest string) files {
	c := configuration{worker: w, token: token, opts: opts, files: files{}}
	egress := opts.Egress
	if egress == "" {
		egress = "/nowhere" // workerd's own network is never used
	}
	c.external("egress", egress)
	rest := ""
	if opts.Cache != "" {
		c.external("cache", opts.Cache)
		rest = "  cacheApiOutbound = \"cache\",\n"
	}
	bindings := c.bindings()
	worker := func(code, rest string) string {
		return fmt.Sprintf("(\n%s  compatibilityDate = %s,\n  compatibilityFlags = [%s],\n  bindings = [\n%s  ],\n  globalOutbound = \"egress\",\n%s);\n",
			code, quote(w.compatibilityDate(newest)), quoteAll(w.Flags), bindings, rest)
	}
	ours, sockets := "", &strings.Builder{}
	enter := func(name, service string) {
		fmt.Fprintf(sockets, "    (name = %s, address = \"unix:passed\", service = %s, http = (\n      cfBlobHeader = %s, forwardedProtoHeader = %s, injectResponseHeaders = [(name = %s, value = \"1\")])),\n",
			quote(name), service, quote(HeaderCF), quote(HeaderProto), quote(headerOK))
	}
	enter("http", `"user"`)
	for i, name := range more.named() {
		enter(entrySocket(i), fmt.Sprintf(`(name = "user", entrypoint = %s)`, quote(name)))
	}
	add := func(name, code string) {
		fmt.Fprintf(&c.services, "    (name = %s, worker = .%s),\n", quote(name), name)
		ours += "const " + name + " :Workerd.Worker = " + code
	}
	user := worker(configureCode(w, c.files), rest)
	switch {
	case more.report:
		add("ctl", worker(reportCode(w, c.files), rest))
	case more.scheduled:
		add("ctl", scheduledCode(c.files))
	}
	if more.report || more.scheduled {
		sockets.WriteString("    (name = \"ctl\", address = \"unix:passed\", service = \"ctl\"),\n")
	}
	if more.trace {
		c.external("events", opts.Events)
		add("tail", tailCode(c.files))
		user = worker(configureCode(w, c.files), rest+"  tails = [\"tail\"],\n")
	}
	c.files[configFile] = fmt.Appendf(nil, `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  v8Flags = ["--max-old-space-size=%d"],
  logging = (structuredLogging = true),
  services = [
    (name = "user", worker = .user),
    (name = "internet", network = (allow = [])),
%s  ],
  sockets = [
%s  ],
);
const user :Workerd.Worker = %s%s`, max(opts.HeapBytes>>20, 1), c.services.String(), sockets, user, ours)
	return c.files
}

// configureCode adds the modules to the files and returns their configuration:
// the one that begins comes first.
func configureCode(w *Worker, all files) string {
	if w.ServiceWorker {
		all["m0"] = w.Modules[0].Content
		return "  serviceWorkerScript = embed \"m0\",\n"
	}
	return "  modules = [\n" + configureModules(w, all) + "  ],\n"
}

func configureModules(w *Worker, all files) string {
	lines := &strings.Builder{}
	for i, m := range w.Modules {
		name := "m" + strconv.Itoa(i)
		all[name] = m.Content
		line := fmt.Sprintf("    (name = %s, %s = embed %s),\n", quote(m.Name), moduleFields[m.Type], quote(name))
		if m.Name == w.Main {
			line += lines.String()
			lines.Reset()
		}
		lines.WriteString(line)
	}
	return lines.String()
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ", "
}

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return strings.Join(quoted, ", ")
}

// quote writes a string of Cap'n Proto's text form, in which any byte may occur.
func quote(s string) string {
	out := make([]byte, 0, len(s)+2)
	out = append(out, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c >= ' ' && c < 0x7f:
			out = append(out, c)
		default:
			const hex = "0123456789abcdef"
			out = append(out, '\\', 'x', hex[c>>4], hex[c&15])
		}
	}
	return string(append(out, '"'))
}

func (f files) write(dir string) error {
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("write a Worker's file: %w", err)
		}
	}
	return nil
}

// remove leaves no secret on the disk once workerd has read it.
func (f files) remove(dir string) error {
	var err error
	for name := range f {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	return err
}
