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
file. The API token and key themselves are not settings: they are in files, or in
the variables NEARKEY_API_TOKEN and NEARKEY_API_KEY.`,
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
		if section.name != "" {
			fmt.Fprintf(out, "\n%s\n[%s]\n", comment(section.doc), section.name)
		}
		for _, s := range section.settings {
			text, set := s.text()
			begin := ""
			if !set { // as the profile has it
				begin, text = "# ", inherited[s.key]
			}
			if s.quoted() {
				text = strconv.Quote(text)
			}
			name := s.key[strings.LastIndex(s.key, ".")+1:]
			fmt.Fprintf(out, "\n%s\n%s%s = %s\n", comment(s.doc), begin, name, text)
		}
	}
	return out.Flush()
}

func comment(doc string) string { return "# " + strings.ReplaceAll(doc, "\n", "\n# ") }
