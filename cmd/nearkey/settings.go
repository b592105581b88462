package main

import (
	"bytes"
	_ "embed"
	"encoding"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
)

// configSource is where the documentation of the settings is read from.
//
//go:embed config.go
var configSource []byte

// setting is one value of a Config: its place in the file, as a flag and in the
// environment, its documentation, and the field.
type setting struct {
	key   string // log.level
	doc   string
	field reflect.Value
}

func (s setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }

func (s setting) env() string {
	return "NEARKEY_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// set gives the field the value that a text means.
func (s setting) set(text string) error {
	field := s.field
	if field.Kind() == reflect.String {
		field.SetString(text)
		return nil
	}
	if field.Kind() == reflect.Pointer {
		field.Set(reflect.New(field.Type().Elem()))
		field = field.Elem()
	}
	return field.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
}

// text is the field's value, and whether it has one.
func (s setting) text() (string, bool) {
	field := s.field
	if field.Kind() == reflect.String {
		return field.String(), true
	}
	if field.Kind() == reflect.Pointer {
		if field.IsNil() {
			return "", false
		}
		field = field.Elem()
	}
	text, err := field.Interface().(encoding.TextMarshaler).MarshalText()
	if err != nil {
		panic("nearkey: setting " + s.key + ": " + err.Error())
	}
	return string(text), true
}

// quoted reports whether the value is a string in the file.
func (s setting) quoted() bool {
	t := s.field.Type()
	return t != reflect.TypeFor[Count]() && t != reflect.TypeFor[*Count]() && t != reflect.TypeFor[*Weight]() && !s.isSwitch()
}

func (s setting) isSwitch() bool { return s.field.Type() == reflect.TypeFor[Switch]() }

// section is a table of the configuration file.
type section struct {
	name     string // empty: before the first table
	doc      string
	settings []setting
}

// sections lists what there is to be set in c by the file, flags and variables.
// The tables of providers are in providerSections.
func sections(c *Config) []section {
	docs := fieldDocs()
	root := reflect.ValueOf(c).Elem()
	all := []section{{}}
	for i := range root.NumField() {
		field := root.Type().Field(i)
		key, doc := field.Tag.Get("toml"), docs["Config."+field.Name]
		switch field.Type.Kind() {
		case reflect.Slice:
		case reflect.Struct:
			all = append(all, section{name: key, doc: doc, settings: fieldSettings(key, root.Field(i), docs)})
		default:
			all[0].settings = append(all[0].settings, setting{key, doc, root.Field(i)})
		}
	}
	return all
}

// fieldSettings are those of the fields of a struct, but for tables within it.
func fieldSettings(key string, of reflect.Value, docs map[string]string) (found []setting) {
	for i := range of.NumField() {
		field := of.Type().Field(i)
		pointsToTable := field.Type.Kind() == reflect.Pointer && field.Type.Elem().Kind() == reflect.Struct
		if field.Type.Kind() == reflect.Slice || pointsToTable {
			continue
		}
		found = append(found, setting{key + "." + field.Tag.Get("toml"), docs[of.Type().Name()+"."+field.Name], of.Field(i)})
	}
	return found
}

// providerSections lists the tables of a provider, each with its settings.
func providerSections(p *ProviderConfig) []section {
	docs := fieldDocs()
	all := []section{{name: "[provider]", doc: docs["Config.Providers"], settings: fieldSettings("provider", reflect.ValueOf(p).Elem(), docs)}}
	for i := range p.Clusters {
		all = append(all, section{name: "[provider.cluster]", doc: docs["ProviderConfig.Clusters"],
			settings: fieldSettings("provider.cluster", reflect.ValueOf(&p.Clusters[i]).Elem(), docs)})
	}
	if p.Blobs != nil {
		all = append(all, section{name: "provider.blobs", doc: docs["ProviderConfig.Blobs"],
			settings: fieldSettings("provider.blobs", reflect.ValueOf(p.Blobs).Elem(), docs)})
	}
	return all
}

// originSections lists the table of an origin.
func originSections(o *OriginConfig) []section {
	docs := fieldDocs()
	return []section{{name: "[origin]", doc: docs["Config.Origins"], settings: fieldSettings("origin", reflect.ValueOf(o).Elem(), docs)}}
}

// exampleProvider is a provider that has every setting.
func exampleProvider() *ProviderConfig {
	p := ProviderConfig{Clusters: make([]ClusterConfig, 1), Blobs: &BlobsConfig{}}
	p.fill()
	return &p
}

func settings(c *Config) []setting {
	var all []setting
	for _, s := range sections(c) {
		all = append(all, s.settings...)
	}
	return all
}

// fieldDocs are the comments of the fields in config.go, by Type.Field.
func fieldDocs() map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", configSource, parser.ParseComments)
	if err != nil {
		panic("nearkey: config.go: " + err.Error())
	}
	docs := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range s.Fields.List {
				docs[spec.Name.Name+"."+f.Names[0].Name] = strings.TrimSpace(f.Doc.Text())
			}
		}
		return false
	})
	return docs
}

// configFlags are the flags of a command that takes a configuration.
type configFlags struct {
	file  string
	texts map[string]*string // by flag
}

func (f *configFlags) flags(cmd *cobra.Command) {
	config := defaultConfig()
	cmd.Flags().StringVar(&f.file, "config", "", "`FILE` of the configuration (TOML; NEARKEY_CONFIG); 'nearkey config' prints one")
	f.texts = map[string]*string{}
	for _, s := range settings(&config) {
		doc, _, _ := strings.Cut(strings.ReplaceAll(s.doc, "\n", " "), ". ")
		if text, ok := s.text(); ok && text != "" {
			doc = fmt.Sprintf("%s (default %s)", strings.TrimSuffix(doc, "."), text)
		}
		f.texts[s.flag()] = cmd.Flags().String(s.flag(), "", doc)
		if s.isSwitch() {
			cmd.Flags().Lookup(s.flag()).NoOptDefVal = "true"
		}
	}
}

// load puts the configuration together: defaults, file, environment, flags, each
// going before what is named before it.
func (f *configFlags) load(m *Main, cmd *cobra.Command) (Config, error) {
	config := defaultConfig()
	file := firstNonEmpty(f.file, m.getenv("NEARKEY_CONFIG"))
	if file != "" {
		if err := readConfig(file, &config); err != nil {
			return Config{}, err
		}
	}
	for _, s := range settings(&config) {
		if text := m.getenv(s.env()); text != "" {
			if err := s.set(text); err != nil {
				return Config{}, usagef("%s: %w", s.env(), err)
			}
		}
		if cmd.Flags().Changed(s.flag()) {
			if err := s.set(*f.texts[s.flag()]); err != nil {
				return Config{}, usagef("--%s: %w", s.flag(), err)
			}
		}
	}
	return config, config.check()
}

// maxConfigBytes bounds what is read as a configuration file.
const maxConfigBytes = 1 << 20

// readConfig reads a configuration file, strictly: what it does not know is an error.
func readConfig(file string, config *Config) error {
	f, err := os.Open(file)
	if err != nil {
		return usagef("configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return usagef("configuration: %w", err)
	}
	if len(text) > maxConfigBytes {
		return usagef("configuration %s is larger than %s; is it the right file?", file, size(maxConfigBytes))
	}
	dec := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := configError(file, dec.Decode(config)); err != nil {
		return err
	}
	for i := range config.Providers {
		config.Providers[i].fill()
	}
	return nil
}

// configError says where in the file an error is, and what may have been meant.
func configError(file string, err error) error {
	if err == nil {
		return nil
	}
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		var known []string
		for _, s := range slices.Concat(sections(&Config{}), providerSections(exampleProvider()), originSections(&OriginConfig{})) {
			known = append(known, strings.Trim(s.name, "[]"))
			for _, setting := range s.settings {
				known = append(known, setting.key)
			}
		}
		var all []error
		for _, e := range missing.Errors {
			row, _ := e.Position()
			key := strings.Join(e.Key(), ".")
			all = append(all, fmt.Errorf("%s:%d: there is no setting %s%s", file, row, key, didYouMean(key, known)))
		}
		return usageError(errors.Join(all...))
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, column := decode.Position()
		return usagef("%s:%d:%d: %s", file, row, column, strings.TrimPrefix(decode.Error(), "toml: "))
	}
	return usagef("%s: %w", file, err)
}

// unknownVariables are names of the environment that look like a misspelt setting.
func (m *Main) unknownVariables() []string {
	known := []string{"NEARKEY_CONFIG", "NEARKEY_API_TOKEN", "NEARKEY_API_KEY", "NEARKEY_API_BASE_URL", "NEARKEY_WORKERS_URL"}
	var config Config
	for _, s := range settings(&config) {
		known = append(known, s.env())
	}
	isKnown := map[string]bool{}
	for _, name := range known {
		isKnown[name] = true
	}
	var found []string
	for _, v := range m.Environ {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "NEARKEY_") || isKnown[name] {
			continue
		}
		if hint := didYouMean(name, known); hint != "" {
			found = append(found, name+" is not a setting"+hint)
		}
	}
	return found
}
