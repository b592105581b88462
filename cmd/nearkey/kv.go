package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
	"github.com/spf13/cobra"
)

func (m *Main) kvCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "kv",
		Short: "Get, put, list and delete keys, one by one or in bulk",
		Long: `Get, put, list and delete keys, one by one or in bulk, with wrangler's words.

The namespace is named by --namespace TITLE, by --namespace-id ID, or as the
first argument. What looks like an id (32 hexadecimal digits) is one.
A key that begins with a dash follows --.`,
		Example: `  nearkey kv put sessions user:1 '{"name":"Ada"}' --ttl 3600
  nearkey kv get sessions user:1
  nearkey kv list sessions --prefix user:
  nearkey kv put --namespace-id 0f2ac74b498b48028cb68387c421e279 logo --path logo.png
  nearkey kv bulk put sessions pairs.json`,
	})
	key := group(&cobra.Command{Use: "key", Short: "The same commands in wrangler's spelling", Hidden: true})
	key.AddCommand(m.kvGetCommand(), m.kvPutCommand(), m.kvListCommand(), m.kvDeleteCommand())
	namespace := m.namespaceCommand()
	namespace.Hidden = true
	cmd.AddCommand(m.kvGetCommand(), m.kvPutCommand(), m.kvListCommand(), m.kvDeleteCommand(), m.bulkCommand(), key, namespace)
	return cmd
}

// remoteFlag accepts a flag that wrangler needs to speak to a server at all.
func remoteFlag(cmd *cobra.Command) {
	cmd.Flags().Bool("remote", true, "accepted for wrangler's sake; every command speaks to a server")
	_ = cmd.Flags().MarkHidden("remote")
}

// exact is an error unless there are n arguments beside the namespace.
func exact(cmd *cobra.Command, args []string, n int) error {
	if len(args) != n {
		return usagef("%d arguments beside the namespace, want %d: %s", len(args), n, cmd.UseLine())
	}
	return nil
}

// keyJSON is a key with its value, as --json shows it.
type keyJSON struct {
	Key string `json:"key"`
	keyValue
}

type keyValue struct {
	Value      *string         `json:"value,omitempty"`
	Base64     *string         `json:"value_base64,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Expiration int64           `json:"expiration,omitempty"`
}

func newKeyJSON(key string, value []byte, metadata json.RawMessage, expiration int64) keyJSON {
	k := keyJSON{key, keyValue{Metadata: metadata, Expiration: expiration}}
	if utf8.Valid(value) {
		text := string(value)
		k.Value = &text
		return k
	}
	text := base64.StdEncoding.EncodeToString(value)
	k.Base64 = &text
	return k
}

func (m *Main) kvGetCommand() *cobra.Command {
	var (
		target target
		asJSON bool
		output string
	)
	cmd := &cobra.Command{
		Use:   "get [NAMESPACE] KEY",
		Short: "Print the value of a key, byte for byte",
		Long: `Print the value of a key, byte for byte and nothing more.
With --json its metadata and expiration as well: {"key", "value" or
"value_base64", "metadata", "expiration"}.`,
		Example: "  nearkey kv get sessions user:1\n  nearkey kv get sessions logo -o logo.png",
		Args:    args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := target.split(args, 1)
			if err == nil {
				err = exact(cmd, args, 1)
			}
			if err != nil {
				return err
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			value, expiration, err := cl.GetBytes(cmd.Context(), ns.ID, args[0])
			if err != nil {
				return fmt.Errorf("get %q: %w", args[0], err)
			}
			if asJSON {
				metadata, err := cl.Metadata(cmd.Context(), ns.ID, args[0])
				if err != nil {
					return fmt.Errorf("get metadata of %q: %w", args[0], err)
				}
				return m.printJSON(newKeyJSON(args[0], value, metadata, expiration))
			}
			return m.writeValue(output, value)
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	remoteFlag(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write the value to")
	cmd.Flags().Bool("text", false, "accepted for wrangler's sake; values are never changed")
	_ = cmd.Flags().MarkHidden("text")
	cmd.MarkFlagsMutuallyExclusive("json", "output")
	return cmd
}

func (m *Main) writeValue(output string, value []byte) error {
	if output != "" && output != "-" {
		return writeFile(output, value, 0o666)
	}
	if output == "" && isTerminal(m.Stdout) {
		if binary(value) {
			return fmt.Errorf("the value (%s) is not text and could harm the terminal; write it to a file with -o FILE, or print it with -o -", size(int64(len(value))))
		}
		if !bytes.HasSuffix(value, []byte("\n")) {
			value = append(value, '\n')
		}
	}
	_, err := m.Stdout.Write(value)
	return err
}

// putFlags are what a put says beside the value.
type putFlags struct {
	path       string
	ttl        int64
	expiration int64
	metadata   string
}

func (m *Main) kvPutCommand() *cobra.Command {
	var (
		target target
		put    putFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "put [NAMESPACE] KEY [VALUE]",
		Short: "Write a key",
		Long: `Write a key with a value from the command line, from a file (--path FILE), or
from standard input (--path -). It replaces value, metadata and expiration: a put
without --metadata clears the metadata that the key had.`,
		Example: `  nearkey kv put sessions user:1 '{"name":"Ada"}' --ttl 3600 --metadata '{"v":2}'
  nearkey kv put sessions logo --path logo.png
  pg_dump app | gzip | nearkey kv put backups app.sql.gz --path -`,
		Args: args(cobra.RangeArgs(1, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, body, err := m.putBody(cmd, &target, put, args)
			if err != nil {
				return err
			}
			opts := client.PutOptions{TTL: put.ttl, Expiration: put.expiration}
			if put.metadata != "" {
				opts.Metadata = json.RawMessage(put.metadata)
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			if err := cl.Put(cmd.Context(), ns.ID, key, body, opts); err != nil {
				return fmt.Errorf("put %q: %w", key, err)
			}
			return m.done(asJSON, map[string]any{"key": key, "bytes": body.Bytes}, "Wrote %q (%s).", key, size(body.Bytes))
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	remoteFlag(cmd)
	cmd.Flags().StringVar(&put.path, "path", "", "`FILE` that holds the value; - is standard input")
	cmd.Flags().Int64Var(&put.ttl, "ttl", 0, "`SECONDS` after which the key expires")
	cmd.Flags().Int64Var(&put.expiration, "expiration", 0, "`SECOND` (since 1970) at which the key expires; --ttl goes before it")
	cmd.Flags().StringVar(&put.metadata, "metadata", "", "`JSON` to be kept with the key")
	return cmd
}

// putBody is the key and the value that the arguments of put name.
func (m *Main) putBody(cmd *cobra.Command, target *target, put putFlags, args []string) (string, client.Body, error) {
	for name, n := range map[string]int64{"ttl": put.ttl, "expiration": put.expiration} {
		if cmd.Flags().Changed(name) && n <= 0 {
			return "", client.Body{}, usagef("--%s %d: want a number of seconds greater than 0", name, n)
		}
	}
	if put.metadata != "" && !json.Valid([]byte(put.metadata)) {
		return "", client.Body{}, usagef("--metadata %q is not JSON; a text is quoted twice: '\"text\"'", put.metadata)
	}
	most := 2
	if put.path != "" {
		most = 1
	}
	args, err := target.split(args, most)
	if err != nil {
		return "", client.Body{}, err
	}
	if put.path == "" && len(args) == 1 {
		return "", client.Body{}, usagef("which value? Give it after the key, or name a file with --path")
	}
	if err := exact(cmd, args, most); err != nil {
		return "", client.Body{}, err
	}
	if put.path == "" {
		return args[0], client.BytesBody([]byte(args[1])), nil
	}
	body, err := m.fileBody(put.path)
	return args[0], body, err
}

// fileBody is the value in a file, or on standard input.
func (m *Main) fileBody(path string) (client.Body, error) {
	if path == "-" {
		value, err := io.ReadAll(io.LimitReader(m.Stdin, kv.MaxValueBytes+1))
		if err != nil {
			return client.Body{}, fmt.Errorf("read standard input: %w", err)
		}
		if len(value) > kv.MaxValueBytes {
			return client.Body{}, fmt.Errorf("standard input has more than %s, the greatest value", size(kv.MaxValueBytes))
		}
		return client.BytesBody(value), nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return client.Body{}, usageError(err)
	}
	if !info.Mode().IsRegular() {
		return client.Body{}, usagef("%s is not a regular file; a directory is loaded with 'nearkey import'", path)
	}
	if info.Size() > kv.MaxValueBytes {
		return client.Body{}, fmt.Errorf("%s has %s, a value has at most %s", path, size(info.Size()), size(kv.MaxValueBytes))
	}
	return diskBody(path, info.Size()), nil
}

func diskBody(path string, bytes int64) client.Body {
	return client.Body{Bytes: bytes, Open: func() (io.ReadCloser, error) { return os.Open(path) }}
}

func (m *Main) kvListCommand() *cobra.Command {
	var (
		target target
		asJSON bool
		prefix string
		limit  int
	)
	cmd := &cobra.Command{
		Use:     "list [NAMESPACE]",
		Aliases: []string{"ls"},
		Short:   "List the keys of a namespace, in byte order",
		Long: `List the keys of a namespace, in byte order. With --json an array of
{"name", "expiration", "metadata"}, as wrangler prints it; otherwise lines of
name, expiration and metadata with tabs between, in which control characters
and backslashes are written as in a Go string.`,
		Example: "  nearkey kv list sessions --prefix user:\n  nearkey kv list sessions --json | jq -r '.[].name'",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := target.split(args, 0); err != nil {
				return err
			}
			if limit < 0 {
				return usagef("--limit %d: want 0 (no limit) or more", limit)
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			rows := m.rows(asJSON, "NAME", "EXPIRATION", "METADATA")
			for key, err := range cl.Keys(cmd.Context(), ns.ID, prefix) {
				if err != nil {
					return errors.Join(rows.flush(), fmt.Errorf("list keys: %w", err))
				}
				if err := rows.add(key, key.Name, expirationCell(key.Expiration), string(key.Metadata)); err != nil {
					return err
				}
				if rows.count == limit {
					break
				}
			}
			return rows.close()
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	remoteFlag(cmd)
	cmd.Flags().StringVar(&prefix, "prefix", "", "only keys that begin with `PREFIX`")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many keys (default: all)")
	return cmd
}

func expirationCell(second int64) string {
	if second == 0 {
		return ""
	}
	return time.Unix(second, 0).UTC().Format(time.RFC3339)
}

func (m *Main) kvDeleteCommand() *cobra.Command {
	var (
		target target
		asJSON bool
		yes    bool
	)
	cmd := &cobra.Command{
		Use:     "delete [NAMESPACE] KEY",
		Aliases: []string{"rm"},
		Short:   "Delete a key; one that does not exist is no error",
		Example: "  nearkey kv delete sessions user:1",
		Args:    args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := target.split(args, 1)
			if err == nil {
				err = exact(cmd, args, 1)
			}
			if err != nil {
				return err
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			if err := cl.Delete(cmd.Context(), ns.ID, args[0]); err != nil {
				return fmt.Errorf("delete %q: %w", args[0], err)
			}
			return m.done(asJSON, map[string]string{"key": args[0]}, "Deleted %q.", args[0])
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	remoteFlag(cmd)
	yesFlags(cmd, &yes) // wrangler does not ask for one key either
	return cmd
}
