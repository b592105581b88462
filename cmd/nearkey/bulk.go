package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
	"golang.org/x/sync/semaphore"
)

func (m *Main) bulkCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "bulk",
		Short: "Get, put and delete many keys, with wrangler's JSON files",
		Long: `Get, put and delete many keys, with wrangler's JSON files. Files of any size are
read as a stream and sent in batches; - is standard input.

Large transfers that must survive interruptions are for 'nearkey import' and
'nearkey export'.`,
		Example: `  nearkey kv bulk put sessions pairs.json
  nearkey kv bulk get sessions keys.json
  nearkey kv list sessions --prefix old: --json | nearkey kv bulk delete sessions - -y`,
	})
	cmd.AddCommand(m.bulkGetCommand(), m.bulkPutCommand(), m.bulkDeleteCommand())
	return cmd
}

func (m *Main) bulkPutCommand() *cobra.Command {
	im := &importer{Main: m}
	cmd := &cobra.Command{
		Use:   "put [NAMESPACE] FILE",
		Short: "Write the pairs of a JSON file",
		Long: `Write the pairs of a JSON file: [{"key", "value", "base64", "expiration",
"expiration_ttl", "metadata"}, ...]. Pairs that the server refuses are named; the
others are written all the same, and the exit code is 6.`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := im.split(args, 1)
			if err == nil {
				err = exact(cmd, args, 1)
			}
			if err != nil {
				return err
			}
			im.path, im.format, im.once, im.concurrency = args[0], formatJSON, true, usualConcurrency
			return im.run(cmd.Context())
		},
	}
	im.target.flags(cmd)
	jsonFlag(cmd, &im.asJSON)
	remoteFlag(cmd)
	cmd.Flags().BoolVar(&im.dryRun, "dry-run", false, "read and check everything, write nothing")
	return cmd
}

// openKeys opens the file of a bulk get or delete.
func (m *Main) openKeys(path string) (keyNames, io.Closer, error) {
	if path == "-" {
		return keyNames{newElements(m.Stdin)}, io.NopCloser(nil), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return keyNames{}, nil, usageError(err)
	}
	return keyNames{newElements(f)}, f, nil
}

// batches hands the keys to do, at most so many at once.
func (k keyNames) batches(most int, do func([]string) error) error {
	var keys []string
	for {
		key, err := k.next()
		if err != nil && err != io.EOF {
			return err
		}
		if err == nil {
			keys = append(keys, key)
		}
		if len(keys) == most || err == io.EOF && len(keys) > 0 {
			if err := do(keys); err != nil {
				return err
			}
			keys = keys[:0]
		}
		if err == io.EOF {
			return nil
		}
	}
}

func (m *Main) bulkDeleteCommand() *cobra.Command {
	var (
		target              target
		asJSON, yes, dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "delete [NAMESPACE] FILE",
		Short: "Delete the keys of a JSON file",
		Long: `Delete the keys of a JSON file: an array of strings, or of objects with a name,
such as 'nearkey kv list --json' prints. A key that does not exist is no error.`,
		Args: args(cobra.RangeArgs(1, 2)),
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
			if !dryRun {
				if err := m.confirm(yes, fmt.Sprintf("Delete all keys in %s from %q?", args[0], ns.Title)); err != nil {
					return err
				}
			}
			return m.bulkDelete(cmd.Context(), cl, ns, args[0], dryRun, asJSON)
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	yesFlags(cmd, &yes)
	remoteFlag(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read and count the keys, delete nothing")
	return cmd
}

func (m *Main) bulkDelete(ctx context.Context, cl *client.Client, ns client.Namespace, path string, dryRun, asJSON bool) error {
	keys, closer, err := m.openKeys(path)
	if err != nil {
		return err
	}
	defer closer.Close()
	var deleted int64
	var failed []string
	err = keys.batches(batchPairs, func(keys []string) error {
		deleted += int64(len(keys))
		if dryRun {
			return nil
		}
		result, err := cl.DeleteMany(ctx, ns.ID, keys)
		if err != nil {
			return err
		}
		deleted -= int64(len(result.Unsuccessful))
		failed = append(failed, result.Unsuccessful...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("bulk delete, after %s: %w", plural(deleted, "key"), err)
	}
	if asJSON {
		if failed == nil {
			failed = []string{}
		}
		if err := m.printJSON(map[string]any{"deleted": deleted, "failed": failed, "dry_run": dryRun}); err != nil {
			return err
		}
	}
	did := "Deleted"
	if dryRun {
		did = "Would delete"
	}
	m.say("%s %s from %q.", did, plural(deleted, "key"), ns.Title)
	if len(failed) > 0 {
		return &exitError{exitPartial, fmt.Errorf("%s could not be deleted, such as %q; repeat the command", plural(int64(len(failed)), "key"), failed[0])}
	}
	return nil
}

func (m *Main) bulkGetCommand() *cobra.Command {
	var (
		target   target
		metadata bool
	)
	cmd := &cobra.Command{
		Use:   "get [NAMESPACE] FILE",
		Short: "Print the values of the keys in a JSON file",
		Long: `Print the values of the keys in a JSON file (an array of strings, or of objects
with a name) as one JSON object: {"key": "value", ...}, null for a key that does
not exist. With --with-metadata each value is {"value", "metadata",
"expiration"}. A value that is not text is {"value_base64"}.`,
		Args: args(cobra.RangeArgs(1, 2)),
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
			dump := &dumper{client: cl, namespace: ns.ID, requests: semaphore.NewWeighted(usualReads)}
			return m.bulkGet(cmd.Context(), dump, args[0], metadata)
		},
	}
	target.flags(cmd)
	var asJSON bool
	jsonFlag(cmd, &asJSON) // what it prints is JSON anyway
	remoteFlag(cmd)
	cmd.Flags().BoolVar(&metadata, "with-metadata", false, "print metadata and expiration too")
	return cmd
}

func (m *Main) bulkGet(ctx context.Context, d *dumper, path string, metadata bool) error {
	names, closer, err := m.openKeys(path)
	if err != nil {
		return err
	}
	defer closer.Close()
	count := 0
	err = names.batches(client.MaxGetKeys, func(keys []string) error {
		c := &chunk{keys: make([]found, len(keys))}
		for i, key := range keys {
			c.keys[i].key.Name = key
		}
		if err := d.fetch(ctx, c, c.keys); err != nil {
			return err
		}
		for i := range c.keys {
			f := &c.keys[i]
			if f.later {
				if err := d.one(ctx, f); err != nil {
					return err
				}
			}
			if err := m.printMember(count, f, metadata); err != nil {
				return err
			}
			count++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bulk get: %w", err)
	}
	end := "\n}\n"
	if count == 0 {
		end = "{}\n"
	}
	_, err = io.WriteString(m.Stdout, end)
	return err
}

// printMember prints a key and its value as a member of a JSON object.
func (m *Main) printMember(index int, f *found, metadata bool) error {
	shown := newKeyJSON("", f.record.Value, f.record.Metadata, f.record.Expiration)
	var value any
	switch {
	case f.gone:
	case metadata:
		value = shown.keyValue
	case shown.Value != nil:
		value = *shown.Value
	default:
		value = map[string]string{"value_base64": *shown.Base64}
	}
	name, nameErr := memberJSON(f.key.Name)
	text, textErr := memberJSON(value)
	if err := errors.Join(nameErr, textErr); err != nil {
		return err
	}
	begin := ",\n"
	if index == 0 {
		begin = "{\n"
	}
	_, err := fmt.Fprintf(m.Stdout, "%s  %s: %s", begin, name, text)
	return err
}

func memberJSON(v any) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return string(bytes.TrimSpace(buf.Bytes())), nil
}
