package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes, as rootHelp documents them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitDenied
	exitUnreachable
	exitPartial
)

// exitError is an error with the exit code that it calls for.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(err error) error { return &exitError{exitUsage, err} }

func usagef(format string, args ...any) error { return usageError(fmt.Errorf(format, args...)) }

// exitCode is the code that an error calls for.
func exitCode(err error) int {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	var answer *client.Error
	switch {
	case errors.As(err, &answer) && answer.NotFound():
		return exitNotFound
	case errors.As(err, &answer) && answer.Denied():
		return exitDenied
	case errors.As(err, &answer) && answer.Overloaded(), errors.Is(err, client.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailed
}

// describe is the error with what to do next.
func describe(ctx context.Context, err error) string {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return "interrupted: " + err.Error()
	}
	text := err.Error()
	var answer *client.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return text + "\nTo trust a certificate authority of your own, set SSL_CERT_FILE to the file of its certificate."
	case errors.Is(err, client.ErrUnreachable):
		return text + "\nIs the server running? 'nearkey serve' starts one; --api-url names another."
	case !errors.As(err, &answer):
		return text
	case answer.Code() == client.CodeNamespaceNotFound:
		return text + "\n'nearkey namespace list' shows the namespaces there are."
	case answer.Denied():
		return text + "\nIs it the right token for this server and account, with the right scope? 'nearkey token list', run with a token that may, shows them."
	case answer.StatusCode == 507:
		return text + "\nThe server's disk is full. Reading and deleting go on; make room and repeat."
	case answer.Overloaded():
		return text + "\nTry again later."
	}
	return text
}

// flagError makes an error of flags one of usage, and suggests the flag that was meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return usageError(err)
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return usagef("%w%s", err, didYouMean("--"+unknown.GetSpecifiedName(), names))
}

// didYouMean is the end of an error message: the nearest of names, if one is near.
func didYouMean(word string, names []string) string {
	best, least := "", 1+len(word)/3
	for _, name := range names {
		if d := distance(strings.ToLower(word), strings.ToLower(name)); d <= least && d < max(len(word), 2) {
			if d < least || best == "" {
				best, least = name, d
			}
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is how many letters must be put, taken or changed to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
