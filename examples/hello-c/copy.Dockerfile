# The second half of build.sh: what the first one made lies in the context.
FROM scratch
COPY hello /hello
CMD ["/hello"]
