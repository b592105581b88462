package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (m *Main) configCommand() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration as a documented file",
		Long: `Print the configuration that 'nearkey serve' would use with the same flags, file
and environment, as a documented file; without any of them, the defaults.

Every setting is a line of the file, a flag of serve (log.level: --log-level) and
a variable (NEARKEY_LOG_LEVEL). Flags go before variables, variables before the
file. Only the tables of providers and origins are in the
file alone. The API token and key
themselves are not settings: they are in files, or in the variables
NEARKEY_API_TOKEN and NEARKEY_API_KEY.`,
		Example: "  nearkey config > nearkey.toml\n  nearkey config --config nearkey.toml   # check a file",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.load(m, cmd)
			if err != nil {
				return err
			}
			return printConfig(m.Stdout, config)
		},
	}
	flags.flags(cmd)
	return cmd
}

// printConfig writes a configuration as a documented file.
func printConfig(w io.Writer, config Config) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "# The configuration of 'nearkey serve'. Every setting is also a flag (log.level:\n# --log-level) and a variable (NEARKEY_LOG_LEVEL); flags go before variables,\n# variables before this file.")
	profile := config.profileLimits()
	profileConfig := Config{Limits: profile}
	inherited := map[string]string{}
	for _, s := range settings(&profileConfig) {
		inherited[s.key], _ = s.text()
	}
	for _, section := range sections(&config) {
		section.print(out, inherited, "")
	}
	printProviders(out, config)
	printOrigins(out, config)
	return out.Flush()
}

// printProviders writes the tables of the providers. Where there are none they are
// shown as they could be.
func printProviders(out io.Writer, config Config) {
	if len(config.Providers) == 0 {
		printExample(out, providerSections(exampleProvider()))
		return
	}
	var all [][]section
	for i := range config.Providers {
		all = append(all, providerSections(&config.Providers[i]))
	}
	printTables(out, all)
}

// printOrigins writes the tables of the origins in the same way.
func printOrigins(out io.Writer, config Config) {
	if len(config.Origins) == 0 {
		printExample(out, originSections(&OriginConfig{}))
		return
	}
	var all [][]section
	for i := range config.Origins {
		all = append(all, originSections(&config.Origins[i]))
	}
	printTables(out, all)
}

func printExample(out io.Writer, sections []section) {
	for _, section := range sections {
		section.print(out, nil, "# ")
	}
}

// printTables writes tables of which there may be several, and documents each name
// once.
func printTables(out io.Writer, tables [][]section) {
	documented := map[string]bool{}
	for _, sections := range tables {
		for _, section := range sections {
			if documented[section.name] {
				section.doc = ""
				for i := range section.settings {
					section.settings[i].doc = ""
				}
			}
			documented[section.name] = true
			section.print(out, nil, "")
		}
	}
}

// print writes a table. A setting without a value has that of inherited, in a
// comment; before is written before every line that is none.
func (s section) print(out io.Writer, inherited map[string]string, before string) {
	if s.name != "" {
		fmt.Fprintf(out, "\n%s%s[%s]\n", comment(s.doc), before, s.name)
	}
	for _, s := range s.settings {
		text, set := s.text()
		begin := before
		if !set { // as the profile has it
			begin, text = "# ", inherited[s.key]
		}
		if s.quoted() {
			text = strconv.Quote(text)
		}
		name := s.key[strings.LastIndex(s.key, ".")+1:]
		if s.doc != "" {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s%s%s = %s\n", comment(s.doc), begin, name, text)
	}
}

// comment is documentation as lines of a file.
func comment(doc string) string {
	if doc == "" {
		return ""
	}
	return "# " + strings.ReplaceAll(doc, "\n", "\n# ") + "\n"
}
