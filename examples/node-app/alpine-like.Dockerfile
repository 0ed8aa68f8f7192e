# As small, but with busybox, so that one can look around inside: kiln run -it IMAGE sh
FROM deb://bookworm?variant=minbase&packages=nodejs,npm,ca-certificates AS build
WORKDIR /app
COPY package.json index.js ./
# A certificate of one's own, where a company looks into TLS: --secret id=ca,src=FILE. Without it nothing changes.
RUN --mount=type=secret,id=ca NODE_EXTRA_CA_CERTS=/run/secrets/ca npm install --omit=dev --no-audit --no-fund

FROM deb://bookworm?packages=nodejs,busybox-static
RUN ["/bin/busybox", "--install", "-s", "/usr/local/bin"]
WORKDIR /app
COPY --from=build /app /app
EXPOSE 3000
CMD ["node", "index.js"]
