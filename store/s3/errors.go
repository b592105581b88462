package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/nearkey/nearkey/kv"
)

const codeNoSuchKey = "NoSuchKey"

// kinds are the codes of S3 that say more than that the server does not serve.
// NoSuchKey alone means that an object is not there: a bucket that has gone, or a
// page of some proxy, must not be taken for the loss of every blob.
var kinds = map[string]error{
	codeNoSuchKey:                    fs.ErrNotExist,
	"SlowDown":                       kv.ErrOverloaded,
	"TooManyRequests":                kv.ErrOverloaded,
	"RequestLimitExceeded":           kv.ErrOverloaded,
	"QuotaExceeded":                  kv.ErrFull,
	"InsufficientStorage":            kv.ErrFull,
	"InsufficientCapacity":           kv.ErrFull,
	"XMinioStorageFull":              kv.ErrFull,
	"XMinioAdminBucketQuotaExceeded": kv.ErrFull,
}

// passing are codes that the client does not know to be worth another attempt. A
// server that keeps objects in folders gives the first one when a folder is removed
// with its last object while another object is put into it.
var passing = []string{"ExistingObjectIsDirectory"}

// failure is the error of a call made with a context within the caller's: that of
// the caller's if it has ended, else one of the kinds of kv. The cause is told and
// not wrapped, so that the deadline of a call is not taken for the caller's.
func failure(ctx, call context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w: %v", doing, ctx.Err(), err)
	}
	if call.Err() != nil {
		return fmt.Errorf("%s: %w: no answer in time", doing, kv.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w: %v", doing, kindOf(err), err)
}

func kindOf(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		if kind, ok := kinds[api.ErrorCode()]; ok {
			return kind
		}
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		switch response.HTTPStatusCode() {
		case http.StatusInsufficientStorage:
			return kv.ErrFull
		case http.StatusTooManyRequests:
			return kv.ErrOverloaded
		}
	}
	return kv.ErrUnavailable
}
