package host

import (
	"fmt"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/workerd"
)

// moduleTypes are the content types of an upload's parts.
var moduleTypes = map[string]workerd.ModuleType{
	"application/javascript+module": workerd.ESModule,
	"application/javascript":        workerd.CommonJS,
	"application/wasm":              workerd.Wasm,
	"application/octet-stream":      workerd.Data,
	"text/plain":                    workerd.Text,
	"application/json":              workerd.JSON,
}

// sourceMap is the type of a module that nothing runs.
const sourceMap = "application/source-map"

// OpenSecrets returns the texts of the secrets of a manifest by the names of their
// bindings.
func OpenSecrets(keys *catalog.Keys, accountID, worker string, m *catalog.Manifest) (map[string]string, error) {
	secrets := map[string]string{}
	for _, b := range m.Bindings {
		if b.Sealed == "" {
			continue
		}
		if keys == nil {
			return nil, fmt.Errorf("secret %s: there is no key to open it: name the key file of the centre with workers.key_file", b.Name)
		}
		text, err := keys.Open(accountID, worker, b.Name, b.Sealed)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", b.Name, err)
		}
		secrets[b.Name] = text
	}
	return secrets, nil
}

// Worker returns what the runtime needs to run a manifest, without a name: the
// modules by their names, the secrets by the names of their bindings. It shares
// their bytes.
func Worker(m *catalog.Manifest, modules map[string][]byte, secrets map[string]string) (workerd.Worker, error) {
	w := workerd.Worker{
		Main: m.Main, ServiceWorker: m.ServiceWorker,
		CompatibilityDate: m.CompatibilityDate, Flags: m.Flags,
	}
	if m.CPUMillis > 0 {
		w.CPU = milliseconds(m.CPUMillis)
	}
	parts := map[string]bool{} // modules that are bindings
	for _, b := range m.Bindings {
		made, err := binding(b, modules, secrets)
		if err != nil {
			return workerd.Worker{}, fmt.Errorf("binding %s: %w", b.Name, err)
		}
		if b.Part != "" {
			parts[b.Part] = true
		}
		w.Bindings = append(w.Bindings, made)
	}
	for _, module := range m.Modules {
		if parts[module.Name] || module.Type == sourceMap || m.ServiceWorker && module.Name != m.Main {
			continue
		}
		kind, ok := moduleTypes[module.Type]
		if !ok {
			return workerd.Worker{}, fmt.Errorf("module %s: modules of type %q are not supported", module.Name, module.Type)
		}
		w.Modules = append(w.Modules, workerd.Module{Name: module.Name, Type: kind, Content: modules[module.Name]})
	}
	return w, nil
}

// binding returns a binding as the runtime knows it.
func binding(b catalog.WorkerBinding, modules map[string][]byte, secrets map[string]string) (workerd.Binding, error) {
	made := workerd.Binding{Name: b.Name}
	switch b.Type {
	case "plain_text":
		made.Kind, made.Value = workerd.BindText, b.Text
	case "json":
		made.Kind, made.Value = workerd.BindJSON, string(b.JSON)
	case "secret_text":
		made.Kind, made.Value = workerd.BindSecret, secrets[b.Name]
	case "kv_namespace":
		made.Kind, made.Value = workerd.BindKV, b.NamespaceID
	case "service":
		made.Kind, made.Value = workerd.BindService, b.Service
		if b.Entrypoint != "default" {
			made.Entrypoint = b.Entrypoint
		}
	case "assets":
		made.Kind, made.Value = workerd.BindService, assetsService
	case "text_blob":
		made.Kind, made.Value = workerd.BindText, string(modules[b.Part])
	case "data_blob":
		made.Kind, made.Value = workerd.BindData, string(modules[b.Part])
	case "wasm_module":
		made.Kind, made.Value = workerd.BindWasm, string(modules[b.Part])
	case "version_metadata":
		made.Kind, made.Value = workerd.BindVersion, b.Text
	default:
		return made, fmt.Errorf("bindings of type %q are not supported", b.Type)
	}
	return made, nil
}
