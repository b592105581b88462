package workerd

import (
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
	if _, err := time.Parse(time.DateOnly, w.CompatibilityDate); err != nil {
		return fmt.Errorf("%q is no compatibility date", w.CompatibilityDate)
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
	BindKV: "kvNamespace", BindText: "text", BindSecret: "text", BindJSON: "json", BindData: "data", BindWasm: "wasmModule", BindService: "service",
}

// files are what workerd reads at its start, by name.
type files map[string][]byte

const configFile = "c.capnp"

// extras are what a process has beside the Worker, each only when it is needed.
type extras struct {
	report bool // a second copy that tells which handlers there are
}

// sockets are the names of the sockets that a process listens on.
func (e extras) sockets() []string {
	if e.report {
		return []string{"http", "ctl"}
	}
	return []string{"http"}
}

// configure returns workerd's configuration of one process. Whatever comes from a
// user is a quoted string or a file of its own.
func configure(w *Worker, token string, more extras, opts *Options) files {
	all := files{}
	services := &strings.Builder{}
	external := func(name, socket string, more ...[2]string) {
		fmt.Fprintf(services, "    (name = %s, external = (address = %s, http = (cfBlobHeader = %s, forwardedProtoHeader = %s, injectRequestHeaders = [",
			quote(name), quote("unix:"+socket), quote(HeaderCF), quote(HeaderProto))
		for i, h := range append([][2]string{{HeaderToken, token}}, more...) {
			fmt.Fprintf(services, "%s(name = %s, value = %s)", comma(i), quote(h[0]), quote(h[1]))
		}
		services.WriteString("]))),\n")
	}
	egress := opts.Egress
	if egress == "" {
		egress = "/nowhere" // workerd's own network is never used
	}
	external("egress", egress)
	cache := ""
	if opts.Cache != "" {
		external("cache", opts.Cache)
		cache = `  cacheApiOutbound = "cache",` + "\n"
	}
	bindings := &strings.Builder{}
	for i, b := range w.Bindings {
		value, name := quote(b.Value), "b"+strconv.Itoa(i)
		switch b.Kind {
		case BindKV:
			external(name, opts.KV, [2]string{HeaderNamespace, b.Value})
			value = quote(name)
		case BindService:
			external(name, opts.Services, [2]string{HeaderService, b.Value})
			value = quote(name)
		case BindData, BindWasm:
			all[name] = []byte(b.Value)
			value = "embed " + quote(name)
		}
		fmt.Fprintf(bindings, "    (name = %s, %s = %s),\n", quote(b.Name), bindingFields[b.Kind], value)
	}
	worker := func(code string) string {
		return fmt.Sprintf(`(
%s  compatibilityDate = %s,
  compatibilityFlags = [%s],
  bindings = [
%s  ],
  globalOutbound = "egress",
%s);
`, code, quote(w.CompatibilityDate), quoteAll(w.Flags), bindings, cache)
	}
	ctl, ctlSocket := "", ""
	if more.report {
		services.WriteString("    (name = \"ctl\", worker = .ctl),\n")
		ctl = "const ctl :Workerd.Worker = " + worker(reportCode(w, all))
		ctlSocket = `
    (name = "ctl", address = "unix:passed", service = "ctl"),`
	}
	all[configFile] = fmt.Appendf(nil, `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  v8Flags = ["--max-old-space-size=%d"],
  logging = (structuredLogging = true),
  services = [
    (name = "user", worker = .user),
%s  ],
  sockets = [(name = "http", address = "unix:passed", service = "user", http = (
    cfBlobHeader = %s, forwardedProtoHeader = %s, injectResponseHeaders = [(name = %s, value = "1")])),%s
  ],
);
const user :Workerd.Worker = %s%s`, max(opts.HeapBytes>>20, 1), services, quote(HeaderCF), quote(HeaderProto), quote(headerOK), ctlSocket,
		worker(configureCode(w, all)), ctl)
	return all
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
